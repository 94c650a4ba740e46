"""`python -m tests.drift`: fails where the generated code is not what the protos generate."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def stale() -> list[str]:
    """Generated files that differ from what `make protos` would write now."""
    protos = ROOT / "protos"
    with tempfile.TemporaryDirectory() as scratch:
        binaries = Path(sys.executable).parent
        subprocess.run(
            [
                sys.executable,
                "-m",
                "grpc_tools.protoc",
                f"-I{protos}",
                *(f"--plugin={name}={binaries / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
                *(f"--{kind}_out={scratch}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")),
                *map(str, sorted((protos / "vlm" / "v1").glob("*.proto"))),
            ],
            check=True,
            capture_output=True,
            cwd=protos,
        )
        fresh = {path.relative_to(scratch): path.read_bytes() for path in Path(scratch).rglob("*_pb2*")}
    kept = {path.relative_to(protos): path.read_bytes() for path in protos.rglob("*_pb2*.py*") if path.suffix != ".pyc"}
    return sorted(str(name) for name in fresh.keys() | kept.keys() if fresh.get(name) != kept.get(name))


if __name__ == "__main__":
    names = stale()
    if names:
        sys.exit(f"generated code is out of date, run `make protos`: {', '.join(names)}")
