"""A file of TensorBoard events, written by the thread that has them.

`tensorboardX.SummaryWriter` writes in a thread of its own, which an error of the disk ends without a word. Then its
queue fills up, and the run waits for room in it without limit. So only its writer of records is used here.
"""

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import RecordWriter

from policy.whole_file import named_errors

_VERSION = "brain.Event:2"


class EventFile:
    """A new file in `folder`.

    Args:
        purge_step: of what other files in the folder have, TensorBoard hides the events from this step on.

    Raises:
        OSError: it cannot be written; the message names the folder. So do the methods.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        self._folder = folder
        # TensorBoard reads files with this beginning in the order of their names.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        with named_errors(folder):
            folder.mkdir(exist_ok=True)
            self._writer = RecordWriter(str(folder / name))
            self._write(Event(file_version=_VERSION))
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, *summaries: Any, step: int = 0) -> None:
        """Add `tensorboardX.summary` values at a step. They are on disk after `flush` or `close`."""
        with named_errors(self._folder):
            for summary in summaries:
                self._write(Event(summary=summary, step=step))

    def flush(self) -> None:
        """Return when all events are on disk."""
        with named_errors(self._folder):
            self._writer.flush()

    def close(self) -> None:
        """Close the file when all events are on disk, or cannot be."""
        with contextlib.closing(self._writer):
            self.flush()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())
