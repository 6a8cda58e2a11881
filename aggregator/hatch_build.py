"""Builds _skim.c where there is a C compiler. Without one the aggregator does the same in Python, at half the speed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class SkimHook(BuildHookInterface):
    """Puts _skim.abi3.so beside its source, for an editable installation as for a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        source = Path(self.root, "src", "marketflow_aggregator", "_skim.c")
        target = source.with_name("_skim.abi3.so")
        compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or "gcc"]
        include = sysconfig.get_paths()["include"]
        command = [*compiler, "-O2", "-std=gnu11", "-shared", "-fPIC", f"-I{include}", "-o", str(target), str(source)]
        try:
            target.unlink(missing_ok=True)  # one of another machine, or of an older source
            built = subprocess.run(command, capture_output=True, text=True, check=False)
            failure = None if built.returncode == 0 else built.stderr
        except OSError as error:  # there is no such compiler, or the source may only be read
            failure = str(error)
        if failure is not None:
            self.app.display_warning(
                f"{source.name} was not built, so the aggregator will do all in Python, at half the speed; "
                f"{shlex.join(command)} says:\n{failure}"
            )
            return
        build_data["artifacts"].append(f"/{target.relative_to(self.root)}")
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
