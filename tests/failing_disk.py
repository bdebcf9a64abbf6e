"""A disk that fails at a chosen operation: making a folder, opening or writing a file, fsync, or rename.

From then on all operations of that kind fail, but renames: a failed attempt may have to give a folder its name back.
"""

import errno
import io
import os
from collections.abc import Callable
from typing import Any

import pytest


class FailingDisk:
    """Counts the operations that change the disk, and lets one of them fail.

    Args:
        fail_at: number of the first operation that fails, from 0; None: none does.
        code: of the error, such as `errno.ENOSPC`.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, fail_at: int | None = None, code: int = errno.ENOSPC
    ) -> None:
        self.operations: list[str] = []
        self._fail_at, self._code, self._failing = fail_at, code, ""
        for name in ("mkdir", "rename", "fsync"):
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name)))
        monkeypatch.setattr(io, "open", self._opened(io.open))

    def count(self, operation: str) -> None:
        self.operations.append(operation)
        if len(self.operations) - 1 == self._fail_at:
            self._failing = operation
        elif self._failing == "rename":
            return
        if operation == self._failing:
            raise OSError(self._code, os.strerror(self._code))

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.count(name)
            return original(*arguments, **options)

        return call

    def _opened(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if mode.startswith("r") and "+" not in mode:
                return original(file, mode, *arguments, **options)
            self.count("open")
            return _Written(original(file, mode, *arguments, **options), self)

        return call


class _Written:
    """An open file whose writes are counted."""

    def __init__(self, file: Any, disk: FailingDisk) -> None:
        self._file, self._disk = file, disk

    def write(self, content: Any) -> int:
        self._disk.count("write")
        return self._file.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Written":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
