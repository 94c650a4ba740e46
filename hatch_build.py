"""Compiles the decoder's own operators when the package is built or installed; Zig's C++ compiler comes from PyPI.

Nothing is compiled for other systems and processors, nor where the sources are left out, as in the images of the other
services: the decoder then uses ONNX Runtime's.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_FOLDER = Path("decoder_service/operators")
_FLAGS = (
    # Any Linux with a C library of 2018 or later, and any processor that has what the sources use.
    *("-target", "x86_64-linux-gnu.2.28", "-mcpu=cascadelake"),
    *("-std=c++17", "-O3", "-Wall", "-Wextra", "-Werror"),
    *(
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
        "-fno-exceptions",
        "-fno-rtti",
        "-fno-threadsafe-statics",
        "-nostdlib++",
        "-fno-sanitize=all",
    ),
)


class OperatorsHook(BuildHookInterface):  # type: ignore[type-arg, misc]  # hatchling is there only while it builds
    """Called by hatchling."""

    PLUGIN_NAME = "custom"

    @property
    def _wanted(self) -> bool:
        known = sys.platform == "linux" and platform.machine() == "x86_64"
        return known and self.target_name == "wheel" and (Path(self.root) / _FOLDER).is_dir()

    def dependencies(self) -> list[str]:
        """What building needs, beside what pyproject.toml says."""
        return ["ziglang==0.17.0"] if self._wanted else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the library packed into the wheel."""
        if not self._wanted:
            return
        compiler = (sys.executable, "-m", "ziglang", "c++")
        sources = sorted(path.name for path in (Path(self.root) / _FOLDER).glob("*.cc"))
        subprocess.run(  # noqa: S603  # every word of it is above
            [*compiler, *_FLAGS, *sources, "-o", "operators.so"], cwd=Path(self.root) / _FOLDER, check=True
        )
        build_data["artifacts"].append(f"{_FOLDER}/*.so")
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
