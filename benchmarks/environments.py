"""Virtual environments for the peers, each of its own under `benchmarks/.envs`: made once, and when what is
required of them changes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

from benchmarks.catalogue import System
from benchmarks.load import BenchmarkFailed

__all__ = ["FOLDER", "python_of"]

INSTALL = ("install", "--quiet", "--disable-pip-version-check")
FOLDER = Path(__file__).parent / ".envs"


def python_of(system: System, progress: Callable[[str], None] = lambda line: None, folder: Path = FOLDER) -> Path:
    """The interpreter that the system runs in; a BenchmarkFailed where it cannot be made."""
    if not system.requires:
        return Path(sys.executable)
    home = folder / system.name
    python = home / "bin" / "python"
    stamp = home / "installed"
    wanted = f"{sys.version}\n{home}\n" + "\n".join(system.requires)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    progress(f"installing {' '.join(system.requires)}")
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True)  # this one may have none
    pip = subprocess.run(
        [python, "-m", "pip", *INSTALL, *system.requires],
        capture_output=True,
        text=True,
        check=False,
    )
    if pip.returncode:
        raise BenchmarkFailed(f"cannot be installed: {(pip.stderr.strip() or 'pip failed').splitlines()[-1]}")
    stamp.write_text(wanted)
    return python
