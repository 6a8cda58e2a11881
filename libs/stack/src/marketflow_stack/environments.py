"""Virtual environments for programs that must not share ours, made once in the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from marketflow_stack.errors import StackError

_UV = [sys.executable, "-m", "uv"]
_PATIENCE = 300
"""Seconds for one step: some programs are a hundred megabytes."""


def environment_of(requirements: Path, name: str) -> Path:
    """The folder of an environment of this Python with what ``requirements`` names; ``name`` begins the folder's name.

    It is made where it is not there yet, whole or not at all, and another one once the requirements change. Raises
    StackError where it cannot be made, as without a package index.
    """
    pins = requirements.read_bytes() + sys.version.encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "marketflow"
    home = cache / f"{name}-{hashlib.sha256(pins).hexdigest()[:12]}"
    if (home / "bin" / "python").exists():
        return home
    cache.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f"{name}-new-", dir=cache))
    make = [*_UV, "venv", "-q", "--clear", "--relocatable", "--python", sys.executable, str(new)]
    fill = [*_UV, "pip", "install", "-q", "--compile-bytecode", "--python", str(new / "bin" / "python")]
    for step in (make, [*fill, "-r", str(requirements)]):
        done = subprocess.run(step, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        if done.returncode:
            shutil.rmtree(new, ignore_errors=True)
            raise StackError(
                f"{requirements} cannot be installed: {done.stderr.strip()[-300:]}", "let it reach a package index"
            )
    try:
        new.rename(home)
    except OSError:  # another process was faster
        shutil.rmtree(new, ignore_errors=True)
    return home
