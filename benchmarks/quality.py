"""The accuracy of quantized graphs: `python -m benchmarks.quality CHECKPOINT`.

The checkpoint is exported at fp32 and at INT4 with both phases, and the graphs are compared on questions about
pictures. With `--outliers`, the same is done for an equivalent checkpoint with outlier channels. With `--encoder`,
encoder types are compared by kind of picture; with `--outliers` also those of an encoder with outlier channels.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import exporter
from benchmarks.divergence import Divergence, Reference, ask
from benchmarks.encoder_types import TYPES, EncoderRow, measure_encoder
from benchmarks.kinds import draw_kinds
from benchmarks.outliers import add_encoder_outliers, add_outliers
from decoder_service.engine.onnx.operators import KvDtype
from exporter.divergence import Graph
from serving.bundle import Bundle

PICTURES = Path(__file__).parents[1] / "demo" / "examples"
QUESTIONS = (
    "Describe the picture.",
    "What is in the picture?",
    "How many shapes are there?",
    "what colour is the circle?",
    "Where is the square?",
    "Is there any text in it?",
)
_OF_A_KIND = 6  # pictures of each kind, if none are given


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        checkpoint: "plain" or "outliers".
        smoothed: whether outliers were smoothed by the export.
        graph: its precision.
        divergence: from the float32 graph of the plain checkpoint.
    """

    checkpoint: str
    smoothed: bool
    graph: str
    divergence: Divergence


def measure(
    checkpoint: Path,
    work: Path,
    *,
    pictures: Sequence[bytes],
    questions: Sequence[str] = QUESTIONS,
    steps: int,
    outliers: float | None = None,
    calibrate: bool = False,
    threads: int = 0,
    operators: bool = True,
    kv_dtype: KvDtype = "int8",
) -> Iterator[Row]:
    """Export and compare.

    Args:
        checkpoint: its directory.
        work: an empty directory for the bundles; each is overwritten by the next.
        pictures: image files.
        questions: the questions about each picture.
        steps: tokens of an answer.
        outliers: the largest factor of the outliers; None: no outliers.
        calibrate: whether the bundles with smoothing are calibrated, too, on the data of the package.
        threads: number of threads; 0: the library's default.
        operators: whether our own operators may be used.
        kv_dtype: how our own attention stores keys and values.
    """
    exact = exporter.export(checkpoint, work / "fp32", precision="fp32", measure=False)
    reference = Reference(exact, ask(exact, pictures, questions), steps=steps, threads=threads)
    variants = [("plain", checkpoint, False), ("plain", checkpoint, True)]
    if outliers is not None:
        changed = add_outliers(checkpoint, work / "outliers", largest=outliers)
        variants += [("outliers", changed, False), ("outliers", changed, True)]
    for name, source, smoothed in variants:
        bundle: Bundle = exporter.export(
            source, work / "int4", smooth=smoothed, calibrate=calibrate and smoothed, measure=False, force=True
        )
        for graph in bundle.decoder.graphs:
            computed = Graph(bundle, graph, threads=threads, operators=operators, kv_dtype=kv_dtype)
            yield Row(name, smoothed, graph, reference.compare(computed))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description="The accuracy of quantized graphs."
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument(
        "--image",
        type=Path,
        action="append",
        metavar="PATH",
        help="default: the demo's examples; with --encoder, pictures of four kinds",
    )
    parser.add_argument("--encoder", choices=TYPES, action="append", help="measure an encoder in this type instead")
    parser.add_argument(
        "--steps", type=int, default=12, metavar="N", help="tokens of each answer (default %(default)s)"
    )
    parser.add_argument(
        "--outliers",
        type=float,
        metavar="K",
        help="also with outlier channels of up to K; with --encoder, only in the encoder",
    )
    parser.add_argument("--calibrate", action="store_true", help="calibrate the smoothed bundles")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: the library's")
    parser.add_argument("--no-operators", action="store_true", help="do not use our own operators")
    parser.add_argument(
        "--kv-cache-dtype",
        choices=["int8", "float16"],
        default="int8",
        help="how our own attention stores keys and values (default %(default)s); not with --encoder",
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="where bundles are written (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    given = {"steps": options.steps, "threads": options.threads, "operators": not options.no_operators}
    pictures = [path.read_bytes() for path in options.image or sorted(PICTURES.glob("*.png"))]
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        rows: Iterator[Row] | Iterator[EncoderRow]
        if options.encoder:
            kinds = {"given": pictures} if options.image else draw_kinds(_OF_A_KIND)
            checkpoint = options.checkpoint
            if options.outliers is not None:
                checkpoint = add_encoder_outliers(checkpoint, Path(work) / "outliers", largest=options.outliers)
            rows = measure_encoder(
                checkpoint, Path(work), kinds=kinds, questions=QUESTIONS, types=options.encoder, **given
            )
        else:
            given["kv_dtype"] = options.kv_cache_dtype
            rows = measure(
                options.checkpoint,
                Path(work),
                pictures=pictures,
                outliers=options.outliers,
                calibrate=options.calibrate,
                **given,
            )
        if options.json:
            print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        else:
            what = (
                ["pictures", "graph", "encoder", "cosine"] if options.encoder else ["checkpoint", "smoothed", "graph"]
            )
            head = [*what, "mean KL", "largest KL", "same token", "positions"]
            print(_line(head), _line(["---"] * len(head)), sep="\n")
            for row in rows:
                print(_line(_cells(row)), flush=True)
    return 0


def _cells(row: Row | EncoderRow) -> list[str]:
    found = row.divergence
    if isinstance(row, EncoderRow):
        first = [row.pictures, row.graph, row.encoder, f"{row.cosine:.5f}"]
    else:
        first = [row.checkpoint, "yes" if row.smoothed else "no", row.graph]
    return [*first, f"{found.mean:.2e}", f"{found.largest:.2e}", f"{found.agreement:.1%}", str(found.positions)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
