"""A pipe in the place of a file is refused instead of waited for."""

import os
from pathlib import Path

import pytest

from tests.training.policy_command.conftest import SPEC
from training.policy_command.input_rows import recorded_rows
from training.policy_command.result import UsageError


def test_a_pipe_of_rows_is_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=r"--rows .*/pipe cannot be read: not a plain file"):
        recorded_rows([tmp_path / "pipe"], SPEC)
