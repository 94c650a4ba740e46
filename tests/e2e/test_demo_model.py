"""The demo model sees, compares and watches, through all three services, and sees less without DeepStack."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.evaluate import TABLE, Answer, Score, held_out_cases, score
from demo.pictures import CONVERSATIONS, Conversation
from demo.served import VARIANTS, answer_through, bundle_of, converse
from demo.skills import SKILLS
from tests.e2e.conftest import Up, up
from triptych import Client
from triptych_cli.demo import open_example

pytestmark = pytest.mark.e2e

SCENES = 200  # those of the page's table
FEW = 100  # questions of every other skill
WANTED = {
    "describe": 0.95,
    "count": 0.95,
    "colour": 0.95,
    "place": 0.95,
    "read": 0.9,
    "compare": 0.9,
    "follow-up": 0.9,
    "watch": 0.85,
}
PAGE = Path(__file__).parents[2] / "demo" / "README.md"


@pytest.fixture(scope="session")
def answer(int4_system: Up) -> Iterator[Answer]:
    """The INT4 bundle through all three services, with the encoder in float32."""
    with Client(int4_system.grpc) as client:
        yield answer_through(client)


def _wrong(result: Score) -> list[tuple[tuple[str, ...], str, str]]:
    return [(case.questions, case.expected, answer) for case, answer in result.wrong]


@pytest.fixture(scope="session")
def described(answer: Answer) -> Score:
    """The page's 200 held-out scenes, described."""
    return score(answer, held_out_cases("describe", SCENES))


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, float]]:
    """The page's accuracies, by skill and bundle."""
    found = re.search(f"<!-- {TABLE} -->\n(.*?)<!-- /{TABLE} -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    (_, *bundles), _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found[1].splitlines()]
    return {
        skill: {bundle: float(cell.rstrip("%")) / 100 for bundle, cell in zip(bundles, cells, strict=True)}
        for skill, *cells in rows
    }


def test_the_readmes_table_reaches_what_is_wanted(table: dict[str, dict[str, float]]) -> None:
    """Each skill is at its rate in both bundles, and INT4 costs a point at most."""
    for skill, wanted in WANTED.items():
        row = table[skill]
        assert min(row["fp32"], row["INT4"]) >= wanted, skill
        assert row["INT4"] >= row["fp32"] - 0.01, skill


@pytest.mark.parametrize("encoder", ["bf16", "int8"])
def test_a_faster_encoder_costs_little(table: dict[str, dict[str, float]], encoder: str) -> None:
    """In the page's table it costs a point at most on average over the skills, and two at most in any."""
    lost = [100 * (row["INT4"] - row[f"INT4, encoder {encoder}"]) for row in table.values()]
    assert sum(lost) / len(lost) <= 1
    assert max(lost) <= 2


def test_it_describes_held_out_scenes(described: Score) -> None:
    """Every object right in at least 95% of 200 held-out scenes."""
    assert described.total == SCENES
    assert described.accuracy >= 0.95, _wrong(described)


def test_without_deepstack_it_sees_visibly_less(described: Score, checkpoint: Path, tmp_path: Path) -> None:
    """The same checkpoint with silent DeepStack levels gets at least a quarter of the scenes fewer."""
    bundle = bundle_of(checkpoint, VARIANTS["INT4 without DeepStack"], tmp_path)
    with up("--bundle", str(bundle)) as system, Client(system.grpc) as client:
        blind = score(answer_through(client), held_out_cases("describe", SCENES // 2))
    assert blind.accuracy <= described.accuracy - 0.25


@pytest.mark.parametrize("skill", [name for name in SKILLS if name != "describe"])
def test_it_answers_as_the_readme_says(answer: Answer, table: dict[str, dict[str, float]], skill: str) -> None:
    """On a smaller set each skill is within a twentieth of what the page's table says of the INT4 bundle."""
    result = score(answer, held_out_cases(skill, FEW))
    assert result.accuracy >= table[skill]["INT4"] - 0.05, _wrong(result)


@pytest.mark.parametrize("system", ["int4_system", "auto_system"])
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda one: " ".join(one.files))
def test_it_answers_about_the_example_files(
    request: pytest.FixtureRequest, system: str, conversation: Conversation
) -> None:
    """What `make demo` asks about the files on disk is answered as the page shows, in whatever type it encodes."""
    questions, expected = zip(*conversation.turns, strict=True)
    running: Up = request.getfixturevalue(system)
    with Client(running.grpc) as client:
        assert converse(client, map(open_example, conversation.files), questions) == list(expected)


def test_the_readmes_table_is_whole(described: Score, table: dict[str, dict[str, float]]) -> None:
    """It has every skill and bundle, describes as measured here, and shows a drop without DeepStack."""
    assert set(table) == set(SKILLS)
    assert all(set(row) == set(VARIANTS) for row in table.values())
    assert abs(table["describe"]["INT4 alone"] - described.accuracy) <= 0.02
    assert abs(table["describe"]["INT4"] - described.accuracy) <= 0.02
    assert table["describe"]["INT4 without DeepStack"] <= table["describe"]["INT4"] - 0.1


def test_the_picture_is_what_it_answers_from(answer: Answer) -> None:
    """Negative control: shown another scene, it does not give the first one's answer."""
    cases = held_out_cases("describe", 12, seed=1)
    for case, other in zip(cases, cases[1:] + cases[:1], strict=True):
        if not case.right(other.expected):  # unless both scenes have the same shapes
            assert not case.right(answer(other))
