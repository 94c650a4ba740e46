"""The steps of an export, in order: check everything, write everything, measure, then name it."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from exporter.calibration import CalibrationData, built_in, encode, read_directory
from exporter.families.registry import family_of, open_checkpoint, plan_checkpoint
from serving.bundle import Bundle

from .chat_files import TOKENIZER_FILES
from .errors import ExportError, ExportProblem
from .json_files import write_json
from .manifest import add_encoder_types, draft, write_manifest
from .measuring import measure_apart
from .precision import Phase, Precision
from .progress import Progress
from .recipe import RECIPES, Recipe, RecipeName
from .source import locate
from .writer import check_space, check_target, staged

CALIBRATED = True
"""Whether an export is calibrated that does not say."""

_PHASES: tuple[Phase, ...] = ("int4", "int8")
_BLOCK_SIZES = (16, 32, 64, 128, 256)


def export(
    source: str | Path,
    out: str | Path,
    *,
    precision: Precision = "int4",
    phases: Sequence[Phase] | None = None,
    recipe: RecipeName | Recipe = "balanced",
    block_size: int = 32,
    accuracy_level: int = 4,
    smooth: bool = True,
    calibrate: bool | str | Path | None = None,
    measure: bool = True,
    model_id: str | None = None,
    revision: str | None = None,
    progress: bool | None = None,
    force: bool = False,
) -> Bundle:
    """Write the bundle of a checkpoint of one of the families.

    The bundle is made beside `out` and takes its name when it is complete: after a failure or an interrupt there is
    nothing at `out` that was not there before.

    Args:
        source: a checkpoint directory, or a Hugging Face id such as "Qwen/Qwen3-VL-4B-Instruct".
        out: the directory to make.
        precision: "int4" (weights of the decoder in blocks of 4 bits) or "fp32" (exact, eight times as large).
        phases: the graphs of an INT4 bundle: ("int4", "int8"), the default, adds one that computes in 8 bits for
            prefill and wide batches; ("int4",) leaves it out, for the small footprint. At fp32 there are none.
        recipe: which matrices of the INT4 graph have 8 bits instead of 4: "small" (none), "balanced" or "fine", or a
            recipe of your own. Without effect at fp32.
        block_size: input features that share one scale at 4 bits: 16, 32, 64, 128 or 256; at 8 bits twice as many do.
            Without effect at fp32.
        accuracy_level: how `MatMulNBits` computes: 4 rounds activations to 8 bits, 1 keeps float32.
        smooth: even out outlier channels before rounding. Without effect at fp32.
        calibrate: look at what the model computes of some examples, and choose scales and smoothing by it. True takes
            the examples of the package, a path those of a directory, None the package's unless the precision is fp32.
        measure: measure what the encoder's types cost, which `auto` of the vision service goes by; without an encoder
            there is nothing to measure.
        model_id: the name that clients see; by default the last part of the id or the directory's name.
        revision: branch, tag or commit on Hugging Face.
        progress: show bars on stderr; None shows them when it is a terminal.
        force: replace a bundle that is at `out`.

    Raises:
        ExportError: one sentence about what is wrong, whatever it is.
    """
    if precision not in ("int4", "fp32"):
        raise ExportError(ExportProblem.NO_PRECISION, precision=precision)
    graphs = _graphs(precision, phases)
    bits = recipe if isinstance(recipe, Recipe) else RECIPES.get(recipe)
    if bits is None:
        raise ExportError(ExportProblem.NO_RECIPE, recipe=recipe, known=", ".join(RECIPES))
    if block_size not in _BLOCK_SIZES:
        raise ExportError(ExportProblem.NO_BLOCK_SIZE, block_size=block_size, known=", ".join(map(str, _BLOCK_SIZES)))
    if accuracy_level not in range(5):
        raise ExportError(ExportProblem.NO_ACCURACY_LEVEL, level=accuracy_level)
    data = _calibration_data(precision, calibrate)
    bars = Progress(enabled=progress)
    target = Path(out).expanduser().absolute()
    check_target(target, force=force)
    found = locate(source, revision=revision, show_progress=bars.enabled)
    found = replace(found, folders=family_of(found.root).folders)
    found.fetch_settings()
    planned = plan_checkpoint(found.root)
    if data is not None and not planned.has_encoder:
        data = data.without_pictures()
    size = planned.estimate(graphs, block_size=block_size, recipe=bits)
    check_space(target, size)
    found.check_room(target, size)
    found.fetch_weights()
    checkpoint = open_checkpoint(found.root)
    check_space(target, checkpoint.estimate(graphs, block_size=block_size, recipe=bits))

    with staged(target) as stage:
        checkpoint.write_encoder(stage / "vision", progress=bars)
        decoder = stage / "decoder"
        decoder.mkdir()
        checkpoint.write_embedding(decoder, half=precision == "int4", progress=bars)
        for name in TOKENIZER_FILES:
            shutil.copyfile(checkpoint.root / name, decoder / name)
        (decoder / "chat_template.jinja").write_text(checkpoint.chat_template, encoding="utf-8")
        write_json(decoder / "generation_config.json", checkpoint.generation_config)
        write_json(decoder / "config.json", checkpoint.config)
        plan = None
        if data is not None:
            plan = checkpoint.calibrate(
                encode(draft(checkpoint, stage), data, progress=bars),
                [graph for graph in graphs if graph != "fp32"],
                block_size=block_size,
                accuracy_level=accuracy_level,
                recipe=bits,
                smooth=smooth,
                progress=bars,
            )
        paths = {
            graph: checkpoint.write_decoder(
                decoder,
                precision=graph,
                block_size=block_size,
                accuracy_level=accuracy_level,
                recipe=bits,
                smooth=smooth and precision != "fp32",
                plan=plan,
                progress=bars,
            )
            for graph in graphs
        }
        write_manifest(
            checkpoint,
            stage,
            model_id=model_id or found.name,
            decoder={
                "precision": precision,
                "graphs": {graph: path.relative_to(stage).as_posix() for graph, path in paths.items()},
                "block_size": block_size,
                "accuracy_level": accuracy_level,
                "recipe": bits.describe(checkpoint.layers) if precision == "int4" else None,
                "last_position_logits": True,
                "smoothed": smooth and precision != "fp32",
                "calibration": None if data is None else {"data": data.name, "sha256": data.digest},
                **({} if checkpoint.adapter is None else {"adapter": checkpoint.adapter}),
            },
            progress=bars,
        )
        types = measure_apart(stage, bars) if measure and checkpoint.has_encoder else None
        if types is not None:
            add_encoder_types(stage, types)
    return Bundle.open(target)


def _calibration_data(precision: Precision, chosen: bool | str | Path | None) -> CalibrationData | None:
    """What to calibrate on; None: nothing."""
    if precision == "fp32" and chosen:
        raise ExportError(ExportProblem.FP32_CALIBRATED)
    if precision == "fp32" or chosen is False or (chosen is None and not CALIBRATED):
        return None
    return read_directory(Path(chosen).expanduser()) if isinstance(chosen, str | Path) else built_in()


def _graphs(precision: Precision, phases: Sequence[Phase] | None) -> tuple[Precision | Phase, ...]:
    """The graphs to write, the bundle's own precision first."""
    if precision == "fp32":
        if phases is not None:
            raise ExportError(ExportProblem.PHASES_OF_FP32)
        return ("fp32",)
    chosen = set(_PHASES if phases is None else phases)
    if "int4" not in chosen or not chosen.issubset(_PHASES):
        raise ExportError(ExportProblem.NO_PHASES, phases=",".join(sorted(chosen)))
    return tuple(phase for phase in _PHASES if phase in chosen)
