"""Ranks that train together stay one model, learn from the whole batch, and end together."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from recipes.demo_model.data import Batches, Course
from recipes.demo_model.ranks import Ranks, joined, meet
from recipes.demo_model.train import Run, new_run, recipe_tokenizer, train

TOKENIZER = recipe_tokenizer()
COURSE = Course(batch_size=4, batch_asked=4, turns=2, look_until=1, scenes_until=2, still_until=2)


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    """Ranks that a failing test leaves behind are killed: the interpreter's exit would wait for them."""
    before = set(multiprocessing.active_children())
    yield
    for other in set(multiprocessing.active_children()) - before:
        other.kill()
        other.join()


def _parameters(rank: int) -> list[nn.Parameter]:
    """Three with gradients: known to all, to the second rank alone, and to nobody."""
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(5))]
    parameters[0].grad = torch.full((2, 3), 1.0 + 2.0 * rank)
    if rank == 1:
        parameters[1].grad = torch.arange(4.0)
    return parameters


def _averaged(ranks: Ranks) -> list[torch.Tensor | None]:
    parameters = _parameters(ranks.rank)
    ranks.average(parameters)
    return [parameter.grad for parameter in parameters]


def _spread(ranks: Ranks) -> list[torch.Tensor]:
    """Three matrices of two ranks, each filled with the number of the rank that it is on."""
    tensors = [torch.full(shape, float(ranks.rank)) for shape in ((2, 3), (4, 1), (2, 2))]
    ranks.spread(tensors, [1, 0, 1])
    return tensors


def _average_beside(ranks: Ranks, store: Path) -> None:
    with meet(ranks, store):
        _averaged(ranks)
        ranks.mean(5.0)
        _spread(ranks)


def test_gradients_and_values_are_averaged_and_spread() -> None:
    """A gradient that one rank has not counts as zero there, what nobody learns stays without, and owners' prevail."""
    with joined(_average_beside, 2) as ranks:
        first, second, third = _averaged(ranks)
        (mean,) = ranks.mean(2.0)
        ours = _spread(ranks)
    assert [tensor.unique().tolist() for tensor in ours] == [[1.0], [0.0], [1.0]]
    assert first is not None
    assert second is not None
    assert torch.equal(first, torch.full((2, 3), 2.0))
    assert torch.equal(second, torch.arange(4.0) / 2)
    assert third is None
    assert mean == 3.5


def test_one_alone_needs_nobody() -> None:
    """Without others nothing changes, and no process is started."""
    with joined(_average_beside, 1) as ranks:
        first, second, _ = _averaged(ranks)
        assert ranks.mean(2.0, 4.0) == [2.0, 4.0]
    assert torch.equal(first, torch.ones(2, 3))  # type: ignore[arg-type]
    assert second is None


def test_work_is_shared_out_evenly() -> None:
    """The costliest first, each to whoever has least to do; one alone does all of it."""
    assert Ranks(0, 2).shared_out([1, 6, 2, 3]) == [1, 0, 1, 1]
    assert Ranks(1, 2).shared_out([1, 6, 2, 3]) == [1, 0, 1, 1]
    assert Ranks(0, 1).shared_out([3, 1]) == [0, 0]


def test_shares_are_the_batch() -> None:
    """Two ranks' chats are the whole batch's, each in one share only, and in images of the same size."""
    whole = Batches(TOKENIZER, 0, COURSE)[5]
    shares = [Batches(TOKENIZER, 0, COURSE, Ranks(rank, 2))[5] for rank in range(2)]
    for rank, share in enumerate(shares):
        assert len(share.input_ids) == 2
        for ours, theirs in zip(share.input_ids, whole.input_ids[rank::2], strict=True):
            length = min(len(ours), len(theirs))
            assert torch.equal(ours[:length], theirs[:length])
    assert sum(len(share.pixel_values) for share in shares) == len(whole.pixel_values)
    assert {int(grid.prod()) for share in shares for grid in share.grid} == {int(grid.prod()) for grid in whole.grid}


def _trained(ranks: Ranks, *, keep: Path | None = None) -> Run:
    torch.set_num_threads(1)
    run = new_run(TOKENIZER, 0, tiny=True)
    run.ranks = ranks
    train(run, TOKENIZER, COURSE, seed=0, steps=4, state=keep, workers=0)
    return run


def _train_beside(out: Path, ranks: Ranks, store: Path) -> None:
    with meet(ranks, store):
        _trained(ranks, keep=out)


def test_all_ranks_have_the_same_model(tmp_path: Path) -> None:
    """Bit for bit, through looking, scenes and everything with glances; and it is not what one share alone gives."""
    other_state = tmp_path / "other.pt"
    with joined(partial(_train_beside, other_state), 2) as ranks:
        ours = _trained(ranks)
    other = new_run(TOKENIZER, 1, tiny=True)
    other.load(other_state)
    assert other.history == ours.history
    theirs = other.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.model.state_dict().items())

    alone = new_run(TOKENIZER, 0, tiny=True)
    share = replace(COURSE, batch_size=1, batch_asked=1)  # the first chat of the first rank's share
    train(alone, TOKENIZER, share, seed=0, steps=4, workers=0)
    assert any(not torch.equal(value, theirs[name]) for name, value in alone.model.state_dict().items())


def _continued(ranks: Ranks, state: Path) -> Run:
    torch.set_num_threads(1)
    run = new_run(TOKENIZER, 1 + ranks.rank, tiny=True)
    run.load(state)
    run.ranks = ranks
    train(run, TOKENIZER, COURSE, seed=0, steps=4, workers=0)
    return run


def _continue_beside(state: Path, ranks: Ranks, store: Path) -> None:
    with meet(ranks, store):
        _continued(ranks, state)


def _stopped_beside(out: Path, ranks: Ranks, store: Path) -> None:
    """Told to stop in its second step, it leaves where all do."""
    learn = Run.learn

    def stop(run: Run, *args: object, **options: object) -> None:
        learn(run, *args, **options)  # type: ignore[arg-type]
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    Run.learn = stop  # type: ignore[method-assign]  # this process is its own
    with meet(ranks, store):
        _trained(ranks, keep=out)


def test_whoever_is_told_to_stop_all_stop(tmp_path: Path) -> None:
    """After the same step, with what a resumed run needs."""
    state = tmp_path / "state.pt"
    with joined(partial(_stopped_beside, tmp_path / "other.pt"), 2) as ranks:
        _trained(ranks, keep=state)
    for path in (state, tmp_path / "other.pt"):
        run = new_run(TOKENIZER, 1, tiny=True)
        run.load(path)
        assert run.step == 2


def test_what_is_saved_is_what_all_need(tmp_path: Path) -> None:
    """Each rank knows the momentum of its own matrices; the state has them all, as the unbroken run shows."""
    with joined(partial(_train_beside, tmp_path / "whole.pt"), 2) as ranks:
        whole = _trained(ranks)
    state = tmp_path / "state.pt"
    with joined(partial(_stopped_beside, tmp_path / "other.pt"), 2) as ranks:
        _trained(ranks, keep=state)
    with joined(partial(_continue_beside, state), 2) as ranks:
        resumed = _continued(ranks, state)
    assert resumed.history == whole.history
    after = resumed.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in whole.model.state_dict().items())


def _lost(ranks: Ranks, store: Path) -> None:
    """A process that ends as one does that the system kills."""
    with meet(ranks, store):
        ranks.mean(0.0)
        os.kill(os.getpid(), signal.SIGKILL)


def _beside_one_that_is_lost() -> None:
    with joined(_lost, 2) as ranks:
        ranks.mean(0.0)
        ranks.mean(0.0)


def test_a_lost_process_is_said() -> None:
    """In one sentence; what was saved is there to go on from."""
    with pytest.raises(SystemExit, match="was lost; go on with --resume"):
        _beside_one_that_is_lost()
