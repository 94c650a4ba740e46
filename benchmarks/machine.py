"""The machine and the software of a measurement."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from serving.cores import cpu_name, usable_cores

_CPU_INFO = Path("/proc/cpuinfo")
_PACKAGES = ("triptych", "numpy", "onnxruntime", "onnxruntime-genai", "torch", "transformers", "grpcio")


@dataclass(frozen=True)
class Machine:
    """A machine, and the software on it.

    Attributes:
        cpu: Model of the processor.
        cores: Cores that this process may use.
        memory_gib: Memory of the whole machine.
        load: Load average of the last minute: other load makes figures unusable.
        system: Operating system.
        python: Version of Python.
        versions: Versions of the relevant packages that are installed.
    """

    cpu: str
    cores: int
    memory_gib: float
    load: float
    system: str
    python: str
    versions: dict[str, str]

    @classmethod
    def here(cls, cpu_info: Path = _CPU_INFO) -> Machine:
        """Describe this machine.

        Args:
            cpu_info: Linux's description of the processors.
        """
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(
            cpu=cpu_name(cpu_info),
            cores=usable_cores(),
            memory_gib=round(memory / (1 << 30), 1),
            load=round(os.getloadavg()[0], 2),
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            python=platform.python_version(),
            versions=dict(_versions()),
        )

    @property
    def line(self) -> str:
        """A short form, for the head of a table."""
        return f"{self.cpu}, {self.cores} cores, {self.memory_gib:g} GiB, load {self.load:g}"


def _versions() -> list[tuple[str, str]]:
    found = []
    for package in _PACKAGES:
        try:
            found.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:  # a service's environment has only its own packages
            continue
    return found
