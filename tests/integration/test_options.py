"""Options of an answer through all three services, held against transformers' own logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import exporter
from tests.checkpoints import make_checkpoint
from tests.pictures import noise, png
from tests.reference import Inputs, Reference
from tests.system import triptych_system
from triptych import Answer, Client, Image, user

TOKENS = 12
PICTURE = png(noise(160, 128, 11))
ENGINES = ("batch", "genai")


@dataclass(frozen=True)
class Asked:
    """One question about a picture, for a system and for transformers."""

    client: Client
    reference: Reference
    inputs: Inputs

    def answer(self, **options: Any) -> Answer:
        """The system's answer."""
        return self.client.answer([user(Image(PICTURE), "Describe.")], max_tokens=TOKENS, **options)

    def logits(self, answer: Sequence[int]) -> torch.Tensor:
        """Transformers' logits before each token of an answer, [tokens, vocabulary]."""
        ids = torch.cat([self.inputs.input_ids, torch.tensor([list(answer)])], dim=1)
        types = torch.nn.functional.pad(self.inputs.mm_token_type_ids, (0, len(answer)))
        model = self.reference.model
        model.model.rope_deltas = None
        with torch.inference_mode():
            logits: torch.Tensor = model(input_ids=ids, mm_token_type_ids=types, **self.inputs.media).logits
        return logits[0, self.inputs.input_ids.shape[1] - 1 : -1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model whose generation_config.json asks for a repetition penalty."""
    made = make_checkpoint(tmp_path_factory.mktemp("options") / "checkpoint")
    (made / "generation_config.json").write_text('{"eos_token_id": [319], "repetition_penalty": 1.5}')
    return made


@pytest.fixture(scope="module", params=ENGINES)
def asked(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Asked]:
    """Its bundle in fp32 behind all three services, with each engine."""
    bundle = exporter.export(checkpoint, tmp_path_factory.mktemp("bundle") / "b", precision="fp32", progress=False)
    reference = Reference(checkpoint)
    with triptych_system(bundle.root, engine=request.param) as address, Client(address) as client:
        yield Asked(client, reference, reference.inputs([("user", [PICTURE, "Describe."])]))


NEUTRAL = {"repetition_penalty": 1.0}


def greedy(asked: Asked, change: Any) -> list[int]:
    """The likeliest token each time, after `change` has had the logits and the tokens so far."""
    tokens: list[int] = []
    for _ in range(TOKENS):
        logits = asked.logits([*tokens, 0])[-1].clone()
        tokens.append(int(change(logits, tokens).argmax()))
    return tokens


def test_the_checkpoints_repetition_penalty_holds(asked: Asked) -> None:
    """Left to the checkpoint, and asked for, a greedy answer has transformers' tokens under the same penalty."""
    prompt = set(asked.inputs.input_ids[0].tolist())

    def penalized(by: float) -> list[int]:
        def change(logits: torch.Tensor, tokens: list[int]) -> torch.Tensor:
            seen = torch.tensor(sorted(prompt | set(tokens)))
            logits[seen] = torch.where(logits[seen] > 0, logits[seen] / by, logits[seen] * by)
            return logits

        return greedy(asked, change)

    assert list(asked.answer().token_ids) == penalized(1.5)
    assert list(asked.answer(repetition_penalty=1.1).token_ids) == penalized(1.1)
    plain = list(asked.answer(**NEUTRAL).token_ids)
    assert plain == greedy(asked, lambda logits, _: logits)
    assert plain != penalized(1.5)


@pytest.mark.parametrize(("presence", "frequency"), [(2.0, 0.0), (0.0, 2.0), (-1.0, 0.5)])
def test_penalties_are_of_the_answer_alone(asked: Asked, presence: float, frequency: float) -> None:
    """What the answer holds is less likely, once or as often as it holds it; the prompt counts for nothing."""

    def change(logits: torch.Tensor, tokens: list[int]) -> torch.Tensor:
        for token in set(tokens):
            logits[token] -= presence + frequency * tokens.count(token)
        return logits

    answer = asked.answer(presence_penalty=presence, frequency_penalty=frequency, **NEUTRAL)
    assert list(answer.token_ids) == greedy(asked, change)


def test_a_bias_decides(asked: Asked) -> None:
    """A token with enough of it is all that is written; without the likeliest, the next takes its place."""
    assert set(asked.answer(logit_bias={77: 100}, **NEUTRAL).token_ids) == {77}
    first = asked.answer(**NEUTRAL).token_ids[0]
    second = int(asked.logits([0])[0].topk(2).indices[1])
    assert asked.answer(logit_bias={first: -100}, **NEUTRAL).token_ids[0] == second


@pytest.mark.parametrize(
    "options", [{}, NEUTRAL, {"temperature": 1.5, "seed": 3, "presence_penalty": 1.0, "logit_bias": {77: 5.0}}]
)
def test_log_probabilities_are_the_models_own(asked: Asked, options: dict[str, Any]) -> None:
    """Of the token drawn and of the likeliest, as transformers' logits have them, however the token was chosen."""
    answer = asked.answer(logprobs=5, **options)
    assert [position.chosen.token_id for position in answer.logprobs] == list(answer.token_ids)
    expected = asked.logits(answer.token_ids).log_softmax(-1)
    for position, row in zip(answer.logprobs, expected, strict=True):
        assert position.chosen.logprob == pytest.approx(float(row[position.chosen.token_id]), abs=1e-4)
        best = row.topk(5)
        assert [token.token_id for token in position.top] == best.indices.tolist()
        assert [token.logprob for token in position.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_min_p_keeps_the_likeliest(asked: Asked) -> None:
    """With a min_p of 1 a hot answer is the greedy one."""
    hot = asked.answer(temperature=2.0, top_k=0, top_p=1.0, min_p=1.0, seed=1, **NEUTRAL)
    assert hot.token_ids == asked.answer(**NEUTRAL).token_ids
    assert asked.answer(temperature=2.0, top_k=0, top_p=1.0, seed=1, **NEUTRAL).token_ids != hot.token_ids


def test_where_an_answer_ends(asked: Asked) -> None:
    """At a stop token, not before the fewest tokens, and not at the end of the turn where that is ignored."""
    plain = asked.answer(**NEUTRAL).token_ids
    stop = plain[3]
    stopped = asked.answer(stop_token_ids=[stop], **NEUTRAL)
    assert stopped.token_ids == plain[: plain.index(stop) + 1]
    assert stopped.finish_reason == "stop"

    def change(logits: torch.Tensor, tokens: list[int]) -> torch.Tensor:
        logits[stop] = logits[stop] if len(tokens) >= 8 else -torch.inf
        return logits

    held = asked.answer(stop_token_ids=[stop], min_tokens=8, **NEUTRAL).token_ids
    expected = greedy(asked, change)
    end = expected.index(stop, 8) + 1 if stop in expected[8:] else TOKENS
    assert list(held) == expected[:end]

    (end_of_turn,) = asked.answer(logit_bias={319: 100}, **NEUTRAL).token_ids
    ignored = asked.answer(logit_bias={319: 100}, ignore_eos=True, **NEUTRAL)
    assert ignored.token_ids == (end_of_turn,) * TOKENS
    assert (ignored.finish_reason, ignored.text) == ("length", "")
