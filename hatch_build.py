"""Compiles our own operators when the package is built or installed; Zig's C++ compiler comes from PyPI.

Nothing is compiled for other systems and processors, or without the sources, as in the images of other services: the
decoder then uses ONNX Runtime's operators, and the encoder PyTorch's.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Directories of sources, and the oldest processor with the instructions they use.
_PROCESSORS = {
    "decoder_service/engine/onnx/operators": "cascadelake",
    "vision_service/operators": "cooperlake",
}
_FLAGS = (
    # Any Linux with a C library of 2018 or later.
    *("-target", "x86_64-linux-gnu.2.28"),
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


class OperatorsHook(BuildHookInterface):  # type: ignore[type-arg, misc]  # hatchling is installed only during the build
    """Build hook of hatchling."""

    PLUGIN_NAME = "custom"

    @property
    def _folders(self) -> list[str]:
        """Directories that are compiled here."""
        if sys.platform != "linux" or platform.machine() != "x86_64" or self.target_name != "wheel":
            return []
        return [folder for folder in _PROCESSORS if (Path(self.root) / folder).is_dir()]

    def dependencies(self) -> list[str]:
        """Build dependencies besides those in pyproject.toml."""
        return ["ziglang==0.17.0"] if self._folders else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the libraries, and add them to the wheel."""
        compiler = (sys.executable, "-m", "ziglang", "c++")
        for folder in self._folders:
            path = Path(self.root) / folder
            sources = sorted(source.name for source in path.glob("*.cc"))
            subprocess.run(  # noqa: S603  # the command is above
                [*compiler, *_FLAGS, f"-mcpu={_PROCESSORS[folder]}", *sources, "-o", "operators.so"],
                cwd=path,
                check=True,
            )
            build_data["artifacts"].append(f"{folder}/*.so")
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
