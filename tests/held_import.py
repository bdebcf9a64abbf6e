"""A process that stops at an import until a test has sent it a signal, however slow either of the two is.

held = HeldImport(tmp_path, "numpy")
process = subprocess.Popen(command, env=os.environ | held.environ)
held.wait(process)
process.send_signal(signal.SIGTERM)
held.go_on()
"""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

_PROGRAM = """
import pathlib, sys, time

def hold(event, arguments, held=[]):
    if event == "import" and arguments[0] == {module!r} and not held:
        held.append(True)
        pathlib.Path({arrived!r}).touch()
        while not pathlib.Path({go_on!r}).exists():
            time.sleep(0.01)

sys.addaudithook(hold)
"""


class HeldImport:
    """The first import of `module` in a process that has the variables `environ`, which name files in `folder`."""

    def __init__(self, folder: Path, module: str) -> None:
        self._arrived, self._go_on = folder / "arrived", folder / "go-on"
        site = folder / "site"
        site.mkdir()
        program = _PROGRAM.format(module=module, arrived=str(self._arrived), go_on=str(self._go_on))
        (site / "sitecustomize.py").write_text(program)  # Python imports it at its start
        paths = filter(None, (str(site), os.environ.get("PYTHONPATH")))
        self.environ: dict[str, str] = {"PYTHONPATH": os.pathsep.join(paths)}

    def wait(self, process: "subprocess.Popen[Any]") -> None:
        """Wait until the process has arrived at the import."""
        while not self._arrived.exists():
            assert process.poll() is None, f"it ended with exit code {process.returncode} before the import"
            time.sleep(0.01)

    def go_on(self) -> None:
        """Let the import go on."""
        self._go_on.touch()
