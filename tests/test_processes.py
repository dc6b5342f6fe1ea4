"""A forked Python is as a new one: its status, its output, its signals."""

import signal
import sys
from pathlib import Path

import pytest
from processes import Python
from servers import members

FACTS = "import os, sys, threading; print(os.getcwd(), sys.argv, os.environ['X'], sys.stdin.read(), __name__)"


def test_it_is_told_what_a_new_python_is_told(
    python: Python, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("X", "y")
    done = python.run("-c", f"{FACTS}; sys.stderr.write('told')", "a", "b c", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"{tmp_path} ['-c', 'a', 'b c'] y  __main__\n",
        "told",
    )


def test_it_runs_a_module_of_its_folder_which_finds_its_neighbours(python: Python, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"import beside\n{FACTS.replace('sys.argv', 'sys.argv[1:]')}\n")
    (tmp_path / "beside.py").touch()
    done = python.run("-m", "mine", "a", cwd=tmp_path, environment={"X": "z"})
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path} ['a'] z  __main__\n", "")


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("pass", 0),
        ("sys.exit(3)", 3),
        ("sys.exit('a word')", 1),
        ("raise ValueError('a word')", 1),
        ("os._exit(5)", 5),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("signal.raise_signal(signal.SIGINT)", -signal.SIGINT),
    ],
)
def test_it_ends_as_a_new_one_does(python: Python, tmp_path: Path, ending: str, status: int) -> None:
    done = python.run(
        "-c", f"import atexit, os, signal, sys; atexit.register(print, 'bye'); {ending}", cwd=tmp_path
    )
    assert done.returncode == status
    assert ("bye" in done.stdout) == (status in {0, 1, 3, -signal.SIGINT})
    assert ("a word" in done.stderr) == ("word" in ending)


def test_it_is_heard_and_signalled_while_it_runs(python: Python, tmp_path: Path) -> None:
    code = (
        "import time\nprint('begun', flush=True)\ntry: time.sleep(60)\nexcept KeyboardInterrupt: "
        "print('stopped')"
    )
    going = python.start("-c", code, cwd=tmp_path)
    going.says("begun")
    assert going.poll() is None
    going.kill(signal.SIGINT)
    assert going.wait() == 0 and going.stdout == "begun\nstopped\n"


def test_none_is_left_behind(zygote: object, tmp_path: Path) -> None:
    pythons = Python(zygote)  # type: ignore[arg-type]
    code = "import os, time\nprint(os.fork() and 'both', flush=True)\ntime.sleep(60)"
    going = pythons.start("-c", code, cwd=tmp_path)
    going.says("both")
    assert len(members(going.pid)) == 2
    pythons.close()
    assert not members(going.pid)


def test_a_text_that_never_comes_is_an_error_with_what_came(python: Python, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="never said 'this':\\s+that"):
        python.start("-c", "print('that')", cwd=tmp_path).says("this")


def test_its_torch_and_its_random_numbers_are_its_own(python: Python, tmp_path: Path) -> None:
    code = (
        "import random, threading, torch, uuid; print(random.random(), uuid.uuid4(), torch.get_num_threads())"
    )
    one, other = (python.run("-c", code, cwd=tmp_path).stdout.split() for _ in range(2))
    assert one[:2] != other[:2] and one[2] == "1" and "torch" in sys.modules
