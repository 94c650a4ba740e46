"""Our linear layer in 8 bits computes what its rounded rows and weights give."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from torch import Tensor, nn

from tests.vision_service.conftest import error
from tests.vision_service.operators.here import needs_operators
from vision_service.linear import Int8Linear, column_factors
from vision_service.operators import After, Operators, RoundedWeights

pytestmark = needs_operators

SHAPES = [
    (1, 1, 1),
    (3, 20, 33),
    (4, 18, 32),
    (13, 100, 7),
    (36, 64, 96),
    (97, 128, 130),
    (300, 72, 216),
    (12, 4096, 40),
]


@pytest.fixture
def ours() -> Operators:
    """The operators."""
    return Operators()


@pytest.fixture
def threads_again() -> Iterator[None]:
    """PyTorch's threads are put back after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Case:
    """A layer that is drawn, and rows of several magnitudes."""

    def __init__(self, rows: int, inputs: int, outputs: int) -> None:
        generator = torch.Generator().manual_seed(rows + inputs + outputs)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.x = (draw(rows, inputs) * draw(rows, 1).exp()).bfloat16()
        self.other = (10 * draw(rows, outputs)).bfloat16()
        self.weight, self.bias = draw(outputs, inputs) * draw(outputs, 1).exp(), draw(outputs)
        self.factors, self.shift = draw(inputs).exp(), draw(inputs)

    def weights(self, epsilon: float | None = None) -> RoundedWeights:
        """Packed."""
        return RoundedWeights.of(self.weight, self.bias, factors=self.factors, shift=self.shift, epsilon=epsilon)

    def expected(self, epsilon: float | None = None) -> Tensor:
        """What rounded rows and weights give, in float64."""
        rows = self.x.double() * self.factors
        if epsilon is not None:
            rows = F.layer_norm(self.x.double(), self.x.shape[1:], self.factors.double(), self.shift.double(), epsilon)
        return rounded(rows) @ rounded(self.weight.double()).T + self.bias


def rounded(rows: Tensor) -> Tensor:
    """Each row on a grid of its own."""
    scale = rows.abs().amax(dim=1, keepdim=True) / 127
    return torch.where(scale > 0, torch.round(rows / scale) * scale, 0)


def near(got: Tensor, expected: Tensor) -> bool:
    """Whether each row differs by bfloat16's rounding and a few roundings to 8 bits that fell to the other side."""
    assert got.dtype is torch.bfloat16
    assert got.shape == expected.shape
    difference = (got.double() - expected).abs().amax(dim=1)
    return bool((difference <= 0.01 * expected.abs().amax(dim=1) + 1e-6).all())


@pytest.mark.parametrize("shape", SHAPES)
def test_it_computes_the_rounded_layer(ours: Operators, shape: tuple[int, int, int]) -> None:
    """Alone, with both kinds of GELU, and with an addition, for rows and channels that fill tiles or do not."""
    case = Case(*shape)
    weights, plain = case.weights(), case.expected()
    assert near(ours.linear(case.x, weights, After.NOTHING), plain)
    assert near(ours.linear(case.x, weights, After.TANH_GELU), F.gelu(plain, approximate="tanh"))
    assert near(ours.linear(case.x, weights, After.GELU), F.gelu(plain))
    assert near(ours.linear(case.x, weights, After.ADD, case.other), plain + case.other)
    assert not near(ours.linear(case.x, weights, After.NOTHING), plain + 0.05 * plain.abs().amax())  # negative control


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[1] > 4])
def test_it_normalizes_first(ours: Operators, shape: tuple[int, int, int]) -> None:
    """Rows are normalized in float32 before they are rounded; without that the outcome is another."""
    case = Case(*shape)
    assert near(ours.linear(case.x, case.weights(1e-6), After.NOTHING), case.expected(1e-6))
    assert not near(ours.linear(case.x, case.weights(), After.NOTHING), case.expected(1e-6))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_everywhere(ours: Operators, approximate: str) -> None:
    """Both kinds of GELU are PyTorch's but for bfloat16's rounding, far from zero and near it."""
    bias = torch.cat([torch.linspace(-12, 12, 4000), torch.tensor([-1e30, -100.0, -0.0, 0.0, 100.0, 1e30])])
    weights = RoundedWeights.of(torch.zeros(len(bias), 4), bias, factors=torch.ones(4), shift=torch.zeros(4))
    after = After.GELU if approximate == "none" else After.TANH_GELU
    got = ours.linear(torch.zeros(1, 4).bfloat16(), weights, after)[0].double()
    expected = F.gelu(bias.double(), approximate=approximate)
    assert ((got - expected).abs() <= 0.005 * expected.abs() + 1e-5).all()


def test_a_row_is_what_it_is_alone(ours: Operators) -> None:
    """To the last bit, whatever rows are beside it."""
    case = Case(120, 72, 100)
    weights = case.weights(1e-6)
    together = ours.linear(case.x, weights, After.ADD, case.other)
    for start, stop in ((0, 1), (5, 9), (90, 120), (17, 115)):
        part = slice(start, stop)
        assert torch.equal(ours.linear(case.x[part], weights, After.ADD, case.other[part]), together[part])


@pytest.mark.usefixtures("threads_again")
def test_threads_change_nothing(ours: Operators) -> None:
    """With one thread or several, to the last bit."""
    case = Case(333, 200, 300)
    weights, outcomes = case.weights(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        outcomes.append(ours.linear(case.x, weights, After.TANH_GELU))
    assert all(torch.equal(one, outcomes[0]) for one in outcomes)


def test_rows_without_a_scale(ours: Operators) -> None:
    """Rows of zeros and of next to nothing give the bias, beside others that give what they give alone."""
    case = Case(5, 64, 40)
    before = ours.linear(case.x, case.weights(), After.NOTHING)
    case.x[1], case.x[3] = 0, 1e-38
    got = ours.linear(case.x, case.weights(), After.NOTHING)
    assert torch.equal(got[[1, 3]], case.bias.bfloat16().expand(2, -1))
    assert torch.equal(got[[0, 2, 4]], before[[0, 2, 4]])


def test_outliers_are_moved_to_the_weights(ours: Operators) -> None:
    """A channel that is 200 times as large and read by small weights costs no digits, if the weights show it."""
    case = Case(50, 96, 64)
    norm = nn.LayerNorm(96)
    plain, bias = 0.1 * torch.randn(64, 96, generator=torch.Generator().manual_seed(1)), torch.zeros(64)
    norm.requires_grad_(False).weight[7] *= 200
    weight = plain.clone()
    weight[:, 7] /= 200
    expected = F.linear(norm(case.x.float()), weight)
    assert column_factors(weight)[7] in (1 / 256, 1 / 128)
    assert (column_factors(weight) != 1).sum() == 1
    moved = Int8Linear(ours, weight, bias, norm)(case.x).float()
    kept = ours.linear(
        case.x, RoundedWeights.of(weight, bias, factors=norm.weight, shift=norm.bias, epsilon=norm.eps), After.NOTHING
    ).float()
    assert error(moved, expected) <= 0.03
    assert error(kept, expected) > 0.1


def test_memory(ours: Operators) -> None:
    """A large layer takes half of what it takes in bfloat16, but for a hundredth."""
    weights = RoundedWeights.of(
        torch.randn(1024, 1024), torch.zeros(1024), factors=torch.ones(1024), shift=torch.zeros(1024)
    )
    tensors = (weights.packed, weights.scales, weights.bias, weights.factors, weights.shift)
    assert sum(tensor.nbytes for tensor in tensors) <= 1.02 * 1024 * 1024


def test_it_takes_only_what_it_can_read(ours: Operators) -> None:
    """Tensors of another type or shape are refused, and an addition without or in the place of another end."""
    case = Case(6, 8, 10)
    weights = case.weights()
    for given in (
        (case.x.float(), weights, After.NOTHING),
        (case.x[:, :4], weights, After.NOTHING),
        (case.x.repeat(1, 2)[:, ::2], weights, After.NOTHING),
        (case.x, weights, After.ADD),
        (case.x, weights, After.GELU, case.other),
        (case.x, weights, After.ADD, case.other[:3]),
    ):
        with pytest.raises(ValueError, match="must be"):
            ours.linear(*given)
    wide = torch.zeros(1, 65_537)
    with pytest.raises(ValueError, match="can overflow"):
        RoundedWeights.of(wide, torch.zeros(1), factors=wide[0], shift=wide[0])
