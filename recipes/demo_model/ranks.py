"""Data parallelism: several processes with a thread each learn from a share of every batch and keep one model.

Operations of this size gain nothing from a second thread; from a second process they do
(docs/decisions/0021-demo-recipe.md has the figures).
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import distributed, nn

_LOST_AFTER = 5.0  # seconds in which a process that is ending ends


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; a single one does not communicate."""

    rank: int = 0
    world_size: int = 1

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make each gradient the mean over all ranks; a rank on whose share it does not depend counts as zero."""
        if self.world_size == 1:
            return
        known = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.float32)
        distributed.all_reduce(known)
        learning = [parameter for parameter, ranks in zip(parameters, known.tolist(), strict=True) if ranks]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in learning]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.world_size
        parts = torch.split(flat, [parameter.numel() for parameter in learning])
        for parameter, part in zip(learning, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def shared_out(self, costs: Sequence[float]) -> list[int]:
        """Which rank does each piece of work, so that all take as long: the costliest first, to the least busy."""
        busy = [0.0] * self.world_size
        ranks = [0] * len(costs)
        for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
            ranks[piece] = busy.index(min(busy))
            busy[ranks[piece]] += costs[piece]
        return ranks

    def spread(self, tensors: Sequence[torch.Tensor], owners: Sequence[int]) -> None:
        """Make each tensor, on every rank, what it is on the rank that owns it."""
        if self.world_size == 1:
            return
        for owner in sorted(set(owners)):
            owned = [tensor for tensor, rank in zip(tensors, owners, strict=True) if rank == owner]
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in owned])
            distributed.broadcast(flat, owner)
            if owner != self.rank:
                parts = torch.split(flat, [tensor.numel() for tensor in owned])
                for tensor, part in zip(owned, parts, strict=True):
                    tensor.detach().copy_(part.view_as(tensor))

    def mean(self, *values: float) -> list[float]:
        """Each value's mean over all ranks."""
        if self.world_size == 1:
            return list(values)
        means = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(means)
        return [float(mean) for mean in means / self.world_size]


@contextmanager
def joined(work: Callable[[Ranks, Path], None], world_size: int) -> Iterator[Ranks]:
    """This process as rank 0 beside others, who call `work`; the block is left when they have returned.

    Args:
        work: What the other ranks do, each given its place and the file for `meet`.
        world_size: How many there are, this one included.

    Raises:
        SystemExit: One of them ended before its time.
    """
    if world_size == 1:
        yield Ranks()
        return
    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as directory:
        store = Path(directory) / "store"
        others = [context.Process(target=work, args=(Ranks(rank, world_size), store)) for rank in range(1, world_size)]
        for other in others:
            other.start()
        try:
            with meet(Ranks(0, world_size), store) as ranks:
                yield ranks
        except RuntimeError as error:
            for other in others:
                other.join(_LOST_AFTER)
            if any(other.exitcode for other in others):
                raise SystemExit("another process that trains was lost; go on with --resume") from error
            raise
        for other in others:
            other.join()


@contextmanager
def meet(ranks: Ranks, store: Path) -> Iterator[Ranks]:
    """Take this rank's place; if another is lost, what it does together with the others raises RuntimeError."""
    distributed.init_process_group("gloo", init_method=store.as_uri(), rank=ranks.rank, world_size=ranks.world_size)
    try:
        yield ranks
    finally:
        distributed.destroy_process_group()
