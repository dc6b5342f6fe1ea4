"""quantlab: which quantization keeps a transformer's answers, what does it cost, and why did the others
fail?"""

import os

# OpenMP's threads spin while they wait. Beside any other busy process that makes calibration ten times slower
# (LOG.md); asleep they cost up to a fifth where nothing else runs. This has to be set before torch starts
# them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
