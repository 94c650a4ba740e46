"""An answer does not depend on the load: at INT4, with the default settings, to the last bit.

With ONNX Runtime's operators, where ours do not run, to float32's rounding: its attention is not quite the same behind
a past as without one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from decoder_service.chat import Layout, MediaKind, Medium, Message, Role, Text
from decoder_service.engine import EngineRequest, FeatureRows, SamplingParams
from decoder_service.engine.batching.worker import BatchConfig, load
from decoder_service.engine.interface import TokenDrawn
from decoder_service.engine.model import Piece, Step
from decoder_service.engine.onnx.phases import Phases
from decoder_service.engine.onnx.runner import Runner
from decoder_service.families.registry import family_of
from decoder_service.request.prompt import PromptBuilder
from serving.bundle import Bundle
from tests.decoder_service.cases import followed
from tests.decoder_service.stepping import Stepping
from triptych.bundles import demo_bundle

LONGEST = 12
_RNG = np.random.default_rng(11)


@pytest.fixture(scope="module")
def demo() -> Bundle:
    """The demo model: INT4, with the INT8 graph for prompts."""
    return Bundle.open(demo_bundle())


@pytest.fixture(scope="module", params=[True, False], ids=["ours", "onnxruntime"])
def operators(request: pytest.FixtureRequest) -> bool:
    """Whether our operators are used, where they run; else ONNX Runtime's."""
    return bool(request.param)


@pytest.fixture(scope="module")
def runner(demo: Bundle, operators: bool) -> Runner:
    """Its graphs as the engine loads them."""
    return load(BatchConfig(demo, threads=2, operators=operators))[0]


def _question(
    prompts: PromptBuilder, demo: Bundle, name: str, *parts: str | tuple[int, int], **sampling: float
) -> EngineRequest:
    """Texts and pictures, which are given by their height and width in patches. Features are noise."""
    rng = np.random.default_rng(len(name))
    said: list[Text | Medium] = []
    layouts, features = [], []
    for part in parts:
        if isinstance(part, str):
            said.append(Text(part))
            continue
        rows = part[0] * part[1] // 4
        said.append(Medium(MediaKind.IMAGE, f"sha256:{name}{len(layouts)}"))
        layouts.append(Layout(said[-1], (1, *part), rows, ()))
        features.append(rng.normal(size=(rows, demo.feature_width)).astype(np.float32))
    keys = [f"{name}{number}" for number in range(len(layouts))]
    prompt = prompts.expand(prompts.render([Message(Role.USER, tuple(said))]), layouts, keys)
    return EngineRequest(
        request_id=name,
        token_ids=prompt.engine_token_ids,
        features=FeatureRows.of(*features),
        positions=prompt.positions,
        media=prompt.media,
        inputs=prompt.inputs,
        sampling=SamplingParams(**{"logprobs": 3, **sampling}),  # type: ignore[arg-type]
        max_new_tokens=LONGEST,
        stop_token_ids=frozenset(),
    )


@pytest.fixture(scope="module")
def questions(demo: Bundle) -> dict[str, EngineRequest]:
    """Texts and pictures, greedy and drawn from a seed; and prompts that go on from others."""
    prompts = PromptBuilder.load(demo.decoder_dir, family_of(demo))
    drawn = {"temperature": 1.0, "seed": 5}
    asked = [
        _question(prompts, demo, "short", "Hi"),
        _question(prompts, demo, "drawn", "What is the colour of the sky at night, and why?", **drawn),
        _question(prompts, demo, "long", "one two three four five six seven " * 12),
        _question(prompts, demo, "picture", (8, 12), "What is in the picture?"),
        _question(prompts, demo, "pictures", (8, 8), "and", (14, 10), "How many circles?", **drawn),
    ]
    more = [
        dataclasses.replace(followed(each, range(60, 60 + count)), request_id=f"{each.request_id}, and {count} more")
        for each in asked[2:]
        for count in (1, 9)
    ]
    return {each.request_id: each for each in (*asked, *more)}


@pytest.fixture(scope="module")
def at_rest(demo: Bundle, operators: bool, questions: dict[str, EngineRequest]) -> dict[str, list[TokenDrawn]]:
    """What each is told that is alone, its prompt read in one piece, nothing cached.

    Also of a second turn, which goes on from the whole first one, its answer included. By one thread, where our
    operators compute: ONNX Runtime's may round in another way by another number of threads.
    """
    runner = load(BatchConfig(demo, threads=1 if operators else 2, operators=operators))[0]
    stepping = Stepping(demo, runner, slots=1)
    told = {}
    first = {name: question for name, question in questions.items() if not name.endswith("second turn")}
    for name, question in first.items():
        told[name] = stepping.answer(question).drawn
        turn = followed(question, [*(drawn.token_id for drawn in told[name]), 70, 71])
        questions[f"{name}, second turn"] = turn
        told[f"{name}, second turn"] = stepping.answer(turn).drawn
    return told


@dataclass(frozen=True)
class Visit:
    """A request's part in a mix: which it is, when it comes, and after how many steps it is called off."""

    number: int
    comes: int
    leaves: int | None


VISITS = st.lists(
    st.builds(Visit, st.integers(0, 1000), st.integers(0, 40), st.none() | st.integers(0, 40)), min_size=20, max_size=20
)


@settings(deadline=None, max_examples=4, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(
    visits=VISITS,
    slots=st.sampled_from([3, 8, 16]),
    caches=st.sampled_from([None, 4]),
    rooms=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    parts=st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(any),
)
def test_an_answer_does_not_depend_on_the_load(
    *,
    demo: Bundle,
    runner: Runner,
    questions: dict[str, EngineRequest],
    at_rest: dict[str, list[TokenDrawn]],
    visits: list[Visit],
    slots: int,
    caches: int | None,
    rooms: list[int],
    parts: list[int],
) -> None:
    """Requests that come and are called off at any step, with chunks of any size, any number of parts in a step.

    Each has the tokens and, bit for bit, the log probabilities that it has at rest.
    """
    exact = runner.cache_dtype != np.float32
    names = sorted(at_rest)
    stepping = Stepping(demo, runner, slots=slots, caches=caches, rooms=rooms, parts=parts)
    here = {}
    step = 0
    while step <= max(visit.comes for visit in visits) or not stepping.stepper.idle:
        for visit in visits:
            if visit.comes == step:
                here[visit] = stepping.add(questions[names[visit.number % len(names)]])
            if visit.leaves is not None and visit.comes + visit.leaves == step:
                stepping.stepper.cancel(here[visit])
        stepping.step()
        step += 1
    for visit, job in here.items():
        told = stepping.answers[job]
        assert told.error is None
        assert told.finished is not None or visit.leaves is not None
        rest = at_rest[names[visit.number % len(names)]][: len(told.drawn)]
        assert told.tokens == [drawn.token_id for drawn in rest]
        assert [drawn.logprob for drawn in told.drawn] == pytest.approx([drawn.logprob for drawn in rest], abs=1e-3)
        assert told.drawn == rest or not exact


class ByWidth(Phases):
    """Wide steps go to the graph that reads prompts, as they would where speed alone decided."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner, decode="int4", prefill="int8")
        self._wide = Phases(runner, decode="int8", prefill="int8")

    def decode(self, step: Step, piece: Piece | None = None) -> NDArray[np.float32]:
        return self._wide.decode(step) if step.lengths.size > 2 else super().decode(step, piece)


def test_it_would_if_the_width_decided(
    demo: Bundle, runner: Runner, questions: dict[str, EngineRequest], at_rest: dict[str, list[TokenDrawn]]
) -> None:
    """Negative control: by the width of a step, log probabilities are others; by the phase they are not."""
    asked = [questions[name] for name in ("short", "drawn", "picture")]
    for model, same in ((None, True), (ByWidth(runner), False)):
        stepping = Stepping(demo, runner, slots=3, model=model)
        jobs = [stepping.add(request) for request in asked]
        stepping.finish()
        told = [stepping.answers[job].drawn for job in jobs]
        assert (told == [at_rest[request.request_id] for request in asked]) == same
        assert [drawn[0] for drawn in told] == [at_rest[request.request_id][0] for request in asked]


def test_kept_answers_are_the_exception(
    demo: Bundle, runner: Runner, questions: dict[str, EngineRequest], at_rest: dict[str, list[TokenDrawn]]
) -> None:
    """With `cached_answers` a second turn goes on from what answering has computed, which is rounded in another way."""
    for kept in (False, True):
        stepping = Stepping(demo, runner, slots=1, caches=2, keep_answers=kept)
        stepping.answer(questions["picture"])
        turn = stepping.answer(questions["picture, second turn"])
        assert turn.prefilled is not None
        assert turn.prefilled.cached_tokens == len(questions["picture"].token_ids) + kept * (LONGEST - 1)
        assert (turn.drawn == at_rest["picture, second turn"]) != kept
