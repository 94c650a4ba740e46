"""Which matrices of a decoder have how many bits.

A recipe applies to the INT4 graph of a bundle. Most of its matrices have 4 bits; those that gain the most for their
bytes have 8. Their kinds have the same names in all families.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Bits = Literal[4, 8]

Kind = Literal["q", "k", "v", "o", "gate", "up", "down", "head"]
"""The matrices of a layer, and the output head."""

RecipeName = Literal["small", "balanced", "fine"]

LAYER_KINDS: tuple[Kind, ...] = tuple(kind for kind in get_args(Kind) if kind != "head")


_LARGEST_BLOCK = 256


@dataclass(frozen=True)
class Recipe:
    """Bits of each matrix.

    Attributes:
        name: what a bundle calls it.
        finer: the kinds that have 8 bits in all layers.
        partly_finer: the kinds that have 8 bits in about half of the layers: in the first eighth, in the last, and in
            every third layer between them, as llama.cpp's Q4_K_M has it.
        adapter: bits of a low-rank adapter's matrices, where a model has one.
    """

    name: str
    finer: frozenset[Kind] = frozenset()
    partly_finer: frozenset[Kind] = frozenset()
    adapter: Bits = 8

    def bits(self, kind: Kind, layer: int, layers: int) -> Bits:
        """Bits of a matrix.

        Args:
            kind: which one.
            layer: of which layer; 0 for the output head.
            layers: how many there are.
        """
        if kind in self.finer:
            return 8
        return 8 if kind in self.partly_finer and _is_delicate(layer, layers) else 4

    def describe(self, layers: int) -> Mapping[str, object]:
        """The entry of `bundle.json`: the name, and the bits of each kind's matrices, layer by layer."""
        counts: dict[Kind, int] = {**dict.fromkeys(LAYER_KINDS, layers), "head": 1}
        bits = {kind: [self.bits(kind, layer, layers) for layer in range(count)] for kind, count in counts.items()}
        return {"name": self.name, "bits": bits}


def block_of(bits: Bits, block_size: int, in_features: int) -> int:
    """Input features that share a scale in a matrix.

    At 8 bits a block is twice as long, if the matrix divides into such blocks: the steps are so small that the scale
    matters less.
    """
    twice = 2 * block_size
    return twice if bits == 8 and twice <= _LARGEST_BLOCK and in_features % twice == 0 else block_size


def _is_delicate(layer: int, layers: int) -> bool:
    first = layers // 8
    return layer < first or layer >= layers - first or (layer - first) % 3 == 2


RECIPES: Mapping[RecipeName, Recipe] = {
    "small": Recipe("small", adapter=4),
    "balanced": Recipe("balanced", frozenset({"v", "o", "down"})),
    "fine": Recipe("fine", frozenset({"v", "o", "down", "head"})),
}
