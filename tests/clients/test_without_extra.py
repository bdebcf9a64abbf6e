"""The client without its extra `local`: everything but LocalPolicy works."""

from __future__ import annotations  # for Python 3.9

import subprocess
import sys
from pathlib import Path

import kilolayer

PROGRAM = """
import sys
sys.modules["safetensors"] = sys.modules["onnxruntime"] = None
import kilolayer
try:
    kilolayer.LocalPolicy("exported")
except ImportError as error:
    print(error)
"""


def test_a_client_without_the_extra_is_imported_and_a_local_policy_says_what_to_install() -> None:
    package = Path(kilolayer.__file__).parents[1]
    program = f"import sys; sys.path.insert(0, {str(package)!r})\n{PROGRAM}"
    said = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert said.startswith("LocalPolicy needs safetensors, which cannot be imported")
    assert "pip install 'kilolayer[local]'" in said
