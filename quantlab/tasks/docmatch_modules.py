"""The modules whose callables the task ``docmatch`` asks about.

Named one by one, so that no optional dependency, build option or platform decides what is found, and nothing
is imported that prints, opens a window, warns or was removed from a later version, and nothing that debuggers
replace.
"""

STANDARD_LIBRARY = """
abc argparse array ast asyncio base64 bdb binascii bisect builtins calendar cmath cmd code codecs codeop
collections collections.abc colorsys compileall concurrent.futures configparser contextlib contextvars copy
copyreg csv dataclasses datetime decimal difflib dis doctest email email.charset email.generator email.header
email.headerregistry email.message email.parser email.policy email.utils enum filecmp fileinput fnmatch
fractions ftplib functools gc getopt getpass gettext glob graphlib heapq hmac html html.parser http
http.client http.cookiejar http.cookies http.server imaplib importlib importlib.abc importlib.machinery
importlib.metadata importlib.resources importlib.util inspect io ipaddress itertools json keyword linecache
locale logging logging.config logging.handlers mailbox marshal math mimetypes modulefinder multiprocessing
multiprocessing.connection multiprocessing.managers multiprocessing.pool multiprocessing.queues
multiprocessing.shared_memory netrc numbers operator optparse os os.path pathlib pickle pickletools pkgutil
platform plistlib poplib pprint profile pstats py_compile pyclbr pydoc queue quopri random re reprlib runpy
sched secrets select selectors shelve shlex shutil signal smtplib socket socketserver stat statistics string
stringprep struct subprocess symtable sys sysconfig tarfile tempfile textwrap threading time timeit token
tokenize trace traceback tracemalloc types typing unicodedata unittest unittest.mock urllib.error urllib.parse
urllib.request urllib.robotparser uuid venv warnings wave weakref wsgiref.handlers wsgiref.headers
wsgiref.simple_server wsgiref.util xml.dom xml.dom.minidom xml.dom.pulldom xml.etree.ElementTree xml.sax
xml.sax.handler xml.sax.saxutils xml.sax.xmlreader xmlrpc.client xmlrpc.server zipapp zipfile zipimport
zoneinfo
"""

NUMPY = """
numpy numpy.char numpy.ctypeslib numpy.dtypes numpy.exceptions numpy.fft numpy.lib numpy.lib.array_utils
numpy.lib.format numpy.lib.introspect numpy.lib.mixins numpy.lib.npyio numpy.lib.recfunctions
numpy.lib.scimath numpy.lib.stride_tricks numpy.linalg numpy.ma numpy.polynomial numpy.polynomial.chebyshev
numpy.polynomial.hermite numpy.polynomial.hermite_e numpy.polynomial.laguerre numpy.polynomial.legendre
numpy.polynomial.polynomial numpy.polynomial.polyutils numpy.random numpy.rec numpy.strings numpy.testing
"""

SCIPY = """
scipy.cluster.hierarchy scipy.cluster.vq scipy.constants scipy.datasets scipy.differentiate scipy.fft
scipy.fftpack scipy.integrate scipy.interpolate scipy.io scipy.io.arff scipy.io.matlab scipy.io.wavfile
scipy.linalg scipy.linalg.blas scipy.linalg.interpolative scipy.linalg.lapack scipy.ndimage scipy.optimize
scipy.optimize.elementwise scipy.signal scipy.signal.windows scipy.sparse scipy.sparse.csgraph
scipy.sparse.linalg scipy.spatial scipy.spatial.distance scipy.spatial.transform scipy.special scipy.stats
scipy.stats.contingency scipy.stats.mstats scipy.stats.qmc scipy.stats.sampling
"""

# Without torch.cuda, torch.distributed and the like: what they hold depends on how torch was built.
TORCH = """
torch torch.amp torch.ao.nn.quantized torch.ao.pruning torch.ao.quantization torch.autograd
torch.autograd.forward_ad torch.autograd.function torch.autograd.functional torch.autograd.graph
torch.autograd.profiler torch.compiler torch.distributions torch.distributions.constraints
torch.distributions.kl torch.distributions.transforms torch.export torch.fft torch.func torch.futures torch.fx
torch.fx.experimental.symbolic_shapes torch.hub torch.jit torch.library torch.linalg torch.masked
torch.multiprocessing torch.nested torch.nn torch.nn.attention torch.nn.functional torch.nn.init
torch.nn.parallel torch.nn.parameter torch.nn.utils torch.nn.utils.parametrizations torch.nn.utils.parametrize
torch.nn.utils.prune torch.nn.utils.rnn torch.nn.utils.stateless torch.optim torch.optim.lr_scheduler
torch.optim.swa_utils torch.overrides torch.package torch.profiler torch.quasirandom torch.random
torch.serialization torch.sparse torch.special torch.storage torch.testing torch.utils.benchmark
torch.utils.checkpoint torch.utils.data torch.utils.dlpack torch.utils.hooks
"""

MODULES = tuple(f"{STANDARD_LIBRARY} {NUMPY} {SCIPY} {TORCH}".split())
