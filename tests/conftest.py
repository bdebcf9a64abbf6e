"""One compilation cache for all processes of a test run, kept for the next run; quick compilations; long tests first.

JAX names a compiled program after a hash of everything that went into it: the program, the compiler's options, the
versions. So an entry is never stale, and what a program compiles in one process is read by every other: the workers of
pytest, and the training runs and servers that tests start.

Programs are compiled with LLVM's optimizations off, which takes about half as long. XLA's own passes, which choose
layouts and fuse operations, stay on, and results differ in the last digits only. `make demo` and the tests on a GPU run
what users run, with all optimizations.

Servers that tests start keep their states and admin sockets out of the user's folders, and each test has a folder of
states of its own: a port may be used again, and a decision of another test must not be taken over with it.
"""

import contextlib
import itertools
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

_CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
_MOST_BYTES = 2 * 2**30
_LONGEST = frozenset(
    f"test_{name}.py"
    for name in ("every_environment", "warp", "end_to_end", "kills", "own_robot", "update", "trainer", "layers")
)

# Set before anything imports JAX, such as a conftest.py below this one; workers and subprocesses inherit them.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")


# A busy machine takes long for a single example, and for drawing its data.
hypothesis.settings.register_profile(
    "kilolayer", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("kilolayer")

# A shell ignores SIGINT in what it starts in the background, and nohup SIGHUP; programs that tests start inherit that.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

_NUMBERS = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def user_folders() -> Iterator[Path]:
    """A folder in place of those of the user. Its path is short: that of a Unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="kilolayer-") as folder, pytest.MonkeyPatch.context() as variables:
        variables.setenv("XDG_RUNTIME_DIR", folder)
        variables.setenv("XDG_STATE_HOME", f"{folder}/states")
        yield Path(folder)


@pytest.fixture(autouse=True)
def no_grpc_verbosity() -> Iterator[None]:
    """Without the variable that kilolayer-admin sets in its process: servers of later tests would inherit it."""
    with pytest.MonkeyPatch.context() as variables:
        variables.delenv("GRPC_VERBOSITY", raising=False)
        yield


@pytest.fixture(autouse=True)
def states(user_folders: Path) -> Iterator[Path]:
    """The folder of the states of this test's servers. It is made when it is needed."""
    folder = user_folders / f"states-{next(_NUMBERS)}"
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("XDG_STATE_HOME", str(folder))
        yield folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A long test that comes last keeps one worker waiting for the other."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Delete the oldest entries of the cache until the others fit into `_MOST_BYTES`; workers leave that to pytest."""
    if hasattr(session.config, "workerinput") or not _CACHE.is_dir():
        return
    entries: list[tuple[float, int, Path]] = []
    for entry in _CACHE.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another run of the tests has just deleted or renamed it
            entries.append((entry.stat().st_mtime, entry.stat().st_size, entry))
    total = sum(size for _, size, _ in entries)
    for _, size, entry in sorted(entries):
        if total <= _MOST_BYTES:
            return
        entry.unlink(missing_ok=True)
        total -= size
