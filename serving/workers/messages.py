"""What workers and their parent say to each other, over a pipe."""

from typing import NamedTuple, TypeAlias


class Loaded(NamedTuple):
    """A worker has loaded its policies."""

    versions: tuple[int, ...]  # in the order of their folders


class Compiled(NamedTuple):
    """A worker has compiled everything, and waits for `Open`."""


class Serving(NamedTuple):
    """A worker has opened the port."""

    policies: str  # with their versions, as the ready line names them


class Open(NamedTuple):
    """To a worker: open the port."""


FromWorker: TypeAlias = Loaded | Compiled | Serving
