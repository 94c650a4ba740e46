"""The families that are exported, by the `model_type` of their checkpoints. A new one takes a line here."""

from collections.abc import Mapping
from pathlib import Path

from exporter.errors import ExportError, ExportProblem
from exporter.families.phi4_multimodal.variant import PHI4_MM, PHI4_MULTIMODAL
from exporter.families.qwen2_5_vl.variant import QWEN2_5_VL
from exporter.families.qwen3.variant import QWEN3
from exporter.families.qwen3_vl.variant import QWEN3_VL
from exporter.family import Checkpoint, Family
from exporter.formats import refuse_other_formats
from exporter.json_files import read_json

FAMILIES: Mapping[str, Family] = {
    "qwen3_vl": QWEN3_VL,
    "qwen2_5_vl": QWEN2_5_VL,
    "qwen3": QWEN3,
    "phi4_multimodal": PHI4_MULTIMODAL,
    "phi4mm": PHI4_MM,
}


def plan_checkpoint(root: Path) -> Checkpoint:
    """Read and check all of the checkpoint in directory `root` but its weights, which need not be there.

    Raises:
        ExportError: see `open_checkpoint`.
    """
    return family_of(root).plan(root)


def open_checkpoint(root: Path) -> Checkpoint:
    """Read and check the checkpoint in directory `root`.

    Raises:
        ExportError: it is of another family, or something is missing, damaged or unsupported.
    """
    return family_of(root).open(root)


def family_of(root: Path) -> Family:
    """The family of the checkpoint in directory `root`, by its `config.json` alone.

    Raises:
        ExportError: it is of another family, or there is no such file.
    """
    if not (root / "config.json").is_file():
        refuse_other_formats(root, (path.name for path in root.iterdir()))
    raw = read_json(root / "config.json")
    name, architectures = raw.get("model_type"), raw.get("architectures") or []
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None or architectures not in ([], [family.architecture]):
        found = ", ".join(architectures) or name or "no known architecture"
        accepted = ", ".join(f"{one.title} ({one.architecture})" for one in FAMILIES.values())
        raise ExportError(ExportProblem.FAMILY_UNSUPPORTED, root=root, found=found, accepted=accepted)
    return family
