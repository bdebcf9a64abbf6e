"""Every exception of ours keeps its message and its fields in a copy and in a pickle, as a process pool makes one."""

import copy
import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import clients
import kilolayer
import policy
import scripts
import serving
import training
from kilolayer import Overloaded, PolicyNotFound
from serving.errors import Reason
from serving.workers.worker_process import WorkerEndedError

PACKAGES = (clients, kilolayer, policy, scripts, serving, training)
WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deep copy": copy.deepcopy,
    "oldest pickle": lambda error: pickle.loads(pickle.dumps(error, 0)),
    "newest pickle": lambda error: pickle.loads(pickle.dumps(error, pickle.HIGHEST_PROTOCOL)),
}


def every_exception() -> Iterator[type[BaseException]]:
    for package in PACKAGES:
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if found.name.endswith("__main__") or found.name.startswith("clients.python"):
                continue  # a program that begins when it is imported; `kilolayer`, walked under its own name
            module = importlib.import_module(found.name)
            for value in vars(module).values():
                if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == found.name:
                    yield value


def example(kind: type[BaseException]) -> BaseException:
    """An exception of `kind`, with a value for each argument of its constructor; a new type needs a value here."""
    values: dict[object, Any] = {str: "a text", int: -9, Path: Path("a/b"), Reason: Reason.QUEUE_AGE}
    if not inspect.isfunction(kind.__init__):  # Python's own
        return kind("a text")
    hints = get_type_hints(kind.__init__)
    positional, named = [], {}
    for name, parameter in list(inspect.signature(kind.__init__).parameters.items())[1:]:
        value = values.get(hints[name], "hash")  # the bundle's reasons are a Literal
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            named[name] = value
        else:
            positional.append(value)
    return kind(*positional, **named)


EXCEPTIONS = sorted(set(every_exception()), key=lambda kind: (kind.__module__, kind.__name__))


def test_the_packages_are_walked() -> None:
    found = {kind.__name__ for kind in EXCEPTIONS}
    assert {"KilolayerError", "ClientClosed", "BundleError", "WorkerEndedError", "UnexpectedError"} <= found
    assert {"UnknownNameError", "StageFailed", "DriveError", "SnapshotError", "ConfigError"} <= found
    assert len(EXCEPTIONS) >= 50


@pytest.mark.parametrize("kind", EXCEPTIONS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_it_is_copied_and_pickled(kind: type[BaseException]) -> None:
    error = example(kind)
    error.add_note("a note")
    for way, copied in WAYS.items():
        again = copied(error)
        assert type(again) is kind, way
        assert again is not error, way
        assert str(again) == str(error) != "", way
        assert (again.args, vars(again)) == (error.args, vars(error)), way


def test_what_a_caller_reads_is_there_afterwards() -> None:
    lost = pickle.loads(pickle.dumps(Overloaded("full", status="RESOURCE_EXHAUSTED", reason="queue_full")))
    assert (str(lost), lost.status, lost.reason) == ("full", "RESOURCE_EXHAUSTED", "queue_full")
    unknown = copy.copy(PolicyNotFound("no policy", status="NOT_FOUND"))
    assert (str(unknown), unknown.status, unknown.reason) == ("no policy", "NOT_FOUND", "")
    ended = pickle.loads(pickle.dumps(WorkerEndedError(7, -9)))
    assert (str(ended), ended.exit_code) == ("worker 7 ended by signal 9", -9)
