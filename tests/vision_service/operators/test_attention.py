"""Our attention computes what PyTorch's does in float32, but for bfloat16's rounding."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from torch import Tensor

from tests.vision_service.conftest import error
from tests.vision_service.operators.here import needs_operators
from vision_service import operators
from vision_service.operators import Operators, OperatorsError, attends

pytestmark = needs_operators

CPU = torch.device("cpu")
Runs = Sequence[tuple[int, int]]


@pytest.fixture
def ours() -> Operators:
    """The operators."""
    return Operators()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch's threads are put back after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def draw(rows: int, heads: int, width: int, *, spread: float = 1.5) -> tuple[Tensor, Tensor]:
    """A projection's outcome and turns."""
    generator = torch.Generator().manual_seed(rows + 7 * heads + width)
    qkv = (spread * torch.randn(rows, 3 * heads * width, generator=generator)).bfloat16()
    angles = 6.3 * torch.rand(rows, width // 2, generator=generator)
    return qkv, torch.polar(torch.ones_like(angles), angles)


def by_pytorch(qkv: Tensor, turns: Tensor, runs: Runs, heads: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Attention as the tower computes it without operators, in float32."""
    parts = qkv.float().view(len(qkv), 3, heads, -1)
    pairs = torch.view_as_complex(parts[:, :2].unflatten(-1, (-1, 2)))
    turned = torch.view_as_real(pairs * turns[:, None, None]).flatten(-2)
    query, key, value = (one.to(dtype) for one in (turned[:, 0], turned[:, 1], parts[:, 2]))
    outs = []
    for frame in torch.arange(len(qkv)).split([size for size, frames in runs for _ in range(frames)]):
        q, k, v = (one[frame].transpose(0, 1)[None] for one in (query, key, value))
        outs.append(F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1))
    return torch.cat(outs)


CASES: list[tuple[Runs, int, int]] = [
    ([(1, 5)], 1, 2),
    ([(4, 1)], 1, 16),
    ([(4, 1)], 16, 128),
    ([(16, 3), (4, 2)], 2, 32),
    ([(36, 7)], 16, 64),
    ([(37, 2)], 3, 18),
    ([(47, 1), (48, 1), (49, 1)], 3, 72),
    ([(63, 1), (64, 1), (65, 1)], 3, 64),
    ([(100, 2)], 5, 80),
    ([(192, 1), (4, 1)], 2, 96),
    ([(196, 2), (432, 1)], 4, 112),
    ([(260, 1)], 4, 128),
    ([(1024, 1)], 2, 72),
    ([(1500, 1)], 3, 64),
]


@pytest.mark.parametrize(("runs", "heads", "width"), CASES)
def test_it_computes_what_pytorch_does(ours: Operators, runs: Runs, heads: int, width: int) -> None:
    """For heads, widths and sizes that fill blocks or do not, as near to float32 as PyTorch's own in bfloat16."""
    qkv, turns = draw(sum(size * frames for size, frames in runs), heads, width)
    expected = by_pytorch(qkv, turns, runs, heads)
    theirs = by_pytorch(qkv, turns, runs, heads, torch.bfloat16).float()
    got = ours.attend(qkv, turns, runs, heads)
    assert got.dtype is torch.bfloat16
    assert error(got.float(), expected) <= max(2 * error(theirs, expected), 0.01)
    assert F.cosine_similarity(got.float(), expected, dim=-1).min() > 0.999


def test_what_it_is_compared_with_shows_mistakes(ours: Operators) -> None:
    """Negative control: other frames, no turns or exchanged values are far from the reference."""
    qkv, turns = draw(96, 4, 64)
    runs = ((48, 2),)
    expected = by_pytorch(qkv, turns, runs, 4)
    swapped = torch.cat([qkv[:, :512], qkv[:, 512:].roll(64, 1)], 1)
    wrong = (
        ours.attend(qkv, turns, ((47, 1), (49, 1)), 4),
        ours.attend(qkv, torch.ones_like(turns), runs, 4),
        ours.attend(swapped, turns, runs, 4),
    )
    assert error(ours.attend(qkv, turns, runs, 4).float(), expected) <= 0.01
    assert all(error(one.float(), expected) > 0.1 for one in wrong)


def test_drawn_shapes(ours: Operators) -> None:
    """Over many draws of shapes the outcome is the reference's."""
    draws = random.Random(5)
    for _ in range(40):
        runs = [(draws.randint(1, 300), draws.randint(1, 3)) for _ in range(draws.randint(1, 4))]
        heads, width = draws.randint(1, 6), 2 * draws.randint(1, 64)
        qkv, turns = draw(sum(size * frames for size, frames in runs), heads, width)
        assert error(ours.attend(qkv, turns, runs, heads).float(), by_pytorch(qkv, turns, runs, heads)) <= 0.02


def test_a_frame_is_what_it_is_alone(ours: Operators) -> None:
    """To the last bit, whatever frames are beside it, and whatever is in them."""
    runs = [(50, 1), (36, 3), (130, 1)]
    qkv, turns = draw(288, 3, 72)
    together = ours.attend(qkv, turns, runs, 3)
    start = 0
    for size in (50, 36, 36, 36, 130):
        part = slice(start, start + size)
        assert torch.equal(ours.attend(qkv[part], turns[part], [(size, 1)], 3), together[part])
        start += size
    qkv[:50] = float("nan")
    assert torch.equal(ours.attend(qkv, turns, runs, 3)[50:], together[50:])


def test_a_query_does_not_depend_on_others(ours: Operators) -> None:
    """Other queries in its block change no bit of a row."""
    qkv, turns = draw(100, 2, 64)
    before = ours.attend(qkv, turns, [(100, 1)], 2)
    qkv[:40, :128] *= 3
    after = ours.attend(qkv, turns, [(100, 1)], 2)
    assert torch.equal(after[40:], before[40:])
    assert not torch.equal(after[:40], before[:40])


@pytest.mark.usefixtures("one_thread")
def test_threads_change_nothing(ours: Operators) -> None:
    """With one thread or several, to the last bit."""
    qkv, turns = draw(700, 5, 80)
    outcomes = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        outcomes.append(ours.attend(qkv, turns, [(300, 2), (100, 1)], 5))
    assert all(torch.equal(one, outcomes[0]) for one in outcomes)


@pytest.mark.parametrize("size", [5, 64, 200])
def test_extreme_scores(ours: Operators, size: int) -> None:
    """Equal scores give the mean; one far above all others gives that value; far below zero, they stay finite."""
    qkv, turns = draw(size, 1, 32)
    value = qkv[:, 64:].float()
    qkv[:, :64] = 0
    expected = value.mean(0).expand(size, -1)
    assert error(ours.attend(qkv, turns, [(size, 1)], 1).float(), expected) <= 0.05
    still = torch.ones_like(turns)
    qkv[:, :32] = 1e4
    qkv[:, 32:64] = -1e4
    assert error(ours.attend(qkv, still, [(size, 1)], 1).float(), expected) <= 0.05  # equal, at minus 6e8
    qkv[3, 32:64] = 1e4
    assert torch.equal(ours.attend(qkv, still, [(size, 1)], 1), qkv[3, 64:].expand(size, -1))
    qkv[:, :64] = 1e17 * torch.randn(size, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert ours.attend(qkv, turns, [(size, 1)], 1).isfinite().all()


def test_larger_scores_come_late(ours: Operators) -> None:
    """Sums that were carried along are scaled down whenever a larger score comes, here with every key."""
    qkv, turns = draw(300, 2, 64)
    still = torch.ones_like(turns)
    qkv[:, 128:256] = (torch.arange(300)[:, None] / 40).bfloat16() * qkv[0, :128].sign()
    expected = by_pytorch(qkv, still, [(300, 1)], 2)
    assert error(ours.attend(qkv, still, [(300, 1)], 2).float(), expected) <= 0.01


def test_it_takes_only_what_it_can_read(ours: Operators) -> None:
    """Tensors of another type or shape, runs of other rows and heads of another width are refused."""
    qkv, turns = draw(8, 2, 16)
    runs = [(4, 2)]
    for given in (
        (qkv.float(), turns, runs, 2),
        (qkv.repeat(1, 2)[:, ::2], turns, runs, 2),
        (qkv, turns.real, runs, 2),
        (qkv, turns[:4], runs, 2),
        (qkv, turns, [(4, 1)], 2),
        (qkv, turns, [(8, 1), (4, 0)], 2),
        (*draw(8, 1, 130), runs, 1),
        (qkv, turns, runs, 32),
    ):
        with pytest.raises(ValueError, match=r"must be|are not"):
            ours.attend(*given)
    assert [width for width in (0, 1, 2, 16, 63, 64, 72, 128, 130) if attends(width)] == [2, 16, 64, 72, 128]


def test_processors_without_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not used where an instruction is missing, and the reason is told; with AMX, PyTorch's are."""
    flags = operators.cpu_flags()
    monkeypatch.setattr(operators, "cpu_flags", lambda: flags - {"avx512_bf16"})
    with pytest.raises(OperatorsError, match="the processor has no avx512_bf16"):
        Operators()
    assert operators.find_operators(CPU) is None
    with pytest.raises(OperatorsError, match="the processor has no avx512_bf16"):
        operators.find_operators(CPU, needed=True)
    monkeypatch.setattr(operators, "cpu_flags", lambda: flags | {"amx_bf16"})
    assert operators.find_operators(CPU) is None
    assert operators.find_operators(CPU, needed=True) is not None
    monkeypatch.setattr(operators, "cpu_flags", lambda: flags)
    assert operators.find_operators(torch.device("cuda")) is None
    with pytest.raises(OperatorsError, match="for the CPU"):
        operators.find_operators(torch.device("cuda"), needed=True)
