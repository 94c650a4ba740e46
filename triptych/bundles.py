"""The demo bundle, exported once from the project's checkpoint into the user's cache."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Literal

from serving.bundle import Bundle
from serving.bundle_error import BundleError, BundleProblem
from serving.folder_lock import locked
from serving.signals import importing


def demo_checkpoint() -> Path:
    """Directory of the demo checkpoint."""
    spec = importlib.util.find_spec("demo")
    assert spec is not None and spec.origin is not None  # noqa: S101, PT018  # part of this distribution
    return Path(spec.origin).parent / "checkpoint"


def demo_bundle(precision: Literal["int4", "fp32"] = "int4") -> Path:
    """The demo bundle; exported at the first call.

    Args:
        precision: `int4` or `fp32`.

    Returns:
        Its directory, named by the checkpoint's and the exporter's content: if one changes, a new bundle is made.

    Raises:
        BundleError: The bundle cannot be made.
    """
    checkpoint = demo_checkpoint()
    out = _cache() / f"demo-{precision}-{_fingerprint(checkpoint)}"
    if _is_made(out):
        return out
    with importing():
        import exporter  # noqa: PLC0415  # torch and the builder take seconds to import; most starts find the bundle made

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out.parent):
            if not _is_made(out):  # else another process made it while this one waited
                print(f"triptych: making the demo bundle in {out}, once …", file=sys.stderr)  # noqa: T201
                exporter.export(checkpoint, out, precision=precision, model_id="triptych-demo", force=True)
    except (OSError, exporter.ExportError) as error:
        raise BundleError(BundleProblem.NO_DEMO, error=error) from error
    return out


def _is_made(out: Path) -> bool:
    try:
        Bundle.open(out)
    except BundleError:
        return False
    return True


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")  # the system's convention, not one of Triptych's settings
    return (Path(base) if base else Path.home() / ".cache") / "triptych"


def _fingerprint(checkpoint: Path) -> str:
    digest = hashlib.sha256()
    spec = importlib.util.find_spec("exporter")
    assert spec is not None and spec.origin is not None  # noqa: S101, PT018  # part of this distribution
    exporter = Path(spec.origin).parent
    sources = sorted(file for file in exporter.rglob("*") if file.suffix in {".py", ".jsonl"})
    for file in (*sorted(checkpoint.iterdir()), *sources):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
