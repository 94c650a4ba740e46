"""What recipes give: `python -m benchmarks.recipes CHECKPOINT`, a table of divergence and bytes.

Each recipe is exported for a checkpoint and for checkpoints of the same function: with channels in other orders, which
shows how much of a difference is chance, and with planted outliers. Bytes of the INT4 graph are computed for the
published shapes; speed takes `triptych bench decoder`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import exporter
from benchmarks.checkpoint import SHAPES
from benchmarks.divergence import Reference, ask
from benchmarks.outliers import Place, plant_outliers, shuffle_channels
from benchmarks.quality import PICTURES, QUESTIONS
from exporter.divergence import Graph
from exporter.recipe import RECIPES, Kind, Recipe, block_of

PLACES: tuple[Place, ...] = ("down", "residual", "v")
RATIOS = (30.0, 100.0, 300.0)
_BLOCK = 32


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        recipe: its name.
        checkpoint: "plain", or where outliers are planted and how large they are.
        divergences: mean divergence of the INT4 graph from float32, for each order of the channels.
    """

    recipe: str
    checkpoint: str
    divergences: tuple[float, ...]


def measure(
    checkpoint: Path,
    work: Path,
    recipes: Iterable[Recipe],
    *,
    places: Sequence[Place] = PLACES,
    ratios: Sequence[float] = RATIOS,
    orders: int = 1,
    pictures: Sequence[bytes],
    questions: Sequence[str] = QUESTIONS,
    steps: int = 12,
    calibrate: bool = False,
    threads: int = 0,
) -> Iterator[Row]:
    """Export and compare.

    Args:
        checkpoint: its directory.
        work: an empty directory for checkpoints and bundles.
        recipes: what is compared.
        places: where outliers are planted.
        ratios: how large they are.
        orders: of the channels: the checkpoint's own, and others.
        pictures: image files.
        questions: what is asked about each.
        steps: tokens of an answer.
        calibrate: whether exports are calibrated on the data of the package.
        threads: of the computation; 0 leaves it to the library.
    """
    ordered = [checkpoint, *(shuffle_channels(checkpoint, work / f"order-{n}", seed=n) for n in range(1, orders))]
    variants = {"plain": ordered}
    for place in places:
        for ratio in ratios:
            name = f"{place} {ratio:g}"
            variants[name] = [
                plant_outliers(source, work / f"{name}-{n}".replace(" ", "-"), where=place, ratio=ratio, seed=n)
                for n, source in enumerate(ordered)
            ]
    references = {}
    for source in (source for sources in variants.values() for source in sources):
        exact = exporter.export(source, work / "fp32", precision="fp32", measure=False, force=True)
        references[source] = Reference(exact, ask(exact, pictures, questions), steps=steps, threads=threads)
    for recipe in recipes:
        for name, sources in variants.items():
            found = []
            for source in sources:
                bundle = exporter.export(
                    source,
                    work / "int4",
                    recipe=recipe,
                    phases=["int4"],
                    calibrate=calibrate,
                    measure=False,
                    force=True,
                )
                found.append(references[source].compare(Graph(bundle, "int4", threads=threads)).mean)
            yield Row(recipe.name, name, tuple(found))


def graph_bytes(shape: str, recipe: Recipe, block: int = _BLOCK) -> int:
    """Bytes of the matrices of an INT4 graph of a published shape, with their scales."""
    text, head = SHAPES[shape].text, SHAPES[shape].vocab_size
    queries, keys = (text[name] * text["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    outputs: dict[Kind, int] = {
        **dict.fromkeys(("q", "o"), queries),
        **dict.fromkeys(("k", "v"), keys),
        **dict.fromkeys(("gate", "up", "down"), text["intermediate_size"]),
    }
    inputs = {"o": queries, "down": text["intermediate_size"]}
    layers, total = text["num_hidden_layers"], 0
    matrices = [(kind, layer, count) for kind, count in outputs.items() for layer in range(layers)]
    for kind, layer, count in [*matrices, ("head", 0, head)]:
        bits = recipe.bits(kind, layer, layers)
        weights = count * text["hidden_size"]
        total += weights * bits // 8 + 4 * weights // block_of(bits, block, inputs.get(kind, text["hidden_size"]))
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description="What recipes give.")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument(
        "--recipe",
        action="append",
        metavar="NAME",
        help="of the exporter, or kinds of matrices that have 8 bits, as v+down, or v+down/2 for half of the layers",
    )
    parser.add_argument("--place", choices=PLACES, action="append", help="of outliers (default: all)")
    parser.add_argument("--ratio", type=float, action="append", metavar="R", help="of outliers (default: 30, 100, 300)")
    parser.add_argument("--plain", action="store_true", help="without outliers")
    parser.add_argument("--orders", type=int, default=1, metavar="N", help="of channels (default %(default)s)")
    parser.add_argument("--image", type=Path, action="append", metavar="PATH", help="default: the demo's examples")
    parser.add_argument("--steps", type=int, default=12, metavar="N", help="tokens of each answer")
    parser.add_argument("--calibrate", action="store_true", help="calibrate the exports")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: the library's")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where bundles are written (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each row")
    options = parser.parse_args(arguments)
    recipes = [recipe_of(name) for name in options.recipe or RECIPES]
    pictures = [path.read_bytes() for path in options.image or sorted(PICTURES.glob("*.png"))]
    if not options.json:
        print("| recipe | 2B, bytes | 4B, bytes | checkpoint | mean KL | of each order |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        for row in measure(
            options.checkpoint,
            Path(work),
            recipes,
            places=() if options.plain else options.place or PLACES,
            ratios=options.ratio or RATIOS,
            orders=options.orders,
            pictures=pictures,
            steps=options.steps,
            calibrate=options.calibrate,
            threads=options.threads,
        ):
            print(_as_json(row) if options.json else _as_line(row), flush=True)
    return 0


def recipe_of(name: str) -> Recipe:
    """One of the exporter's, or one that is made of the kinds in its name."""
    if name in RECIPES:
        return next(recipe for known, recipe in RECIPES.items() if known == name)
    kinds = name.split("+")
    partly = frozenset(kind.removesuffix("/2") for kind in kinds if kind.endswith("/2"))
    return Recipe(name, frozenset(kinds) - {f"{kind}/2" for kind in partly}, partly)  # type: ignore[arg-type]  # words


def _more(shape: str, recipe: Recipe) -> str:
    return f"{graph_bytes(shape, recipe) / graph_bytes(shape, RECIPES['small']) - 1:+.1%}"


def _as_json(row: Row) -> str:
    return json.dumps({"recipe": row.recipe, "checkpoint": row.checkpoint, "divergences": row.divergences})


def _as_line(row: Row) -> str:
    recipe, each = recipe_of(row.recipe), " ".join(f"{value:.4f}" for value in row.divergences)
    cells = [
        row.recipe,
        *(_more(shape, recipe) for shape in ("2b", "4b")),
        row.checkpoint,
        f"{np.mean(row.divergences):.4f}",
        each,
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
