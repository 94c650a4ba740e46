"""Prompts in both forms of the chat template: ids as transformers has them, and control tokens in text stay text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from decoder_service.chat import Layout, MediaKind, Medium, Message, Role, Text
from decoder_service.engine import Span
from decoder_service.families.phi4_multimodal.prompt_layout import Phi4Multimodal
from decoder_service.request.prompt import PromptBuilder
from decoder_service.request.tools import Tool, Tools
from serving.errors import Code, ServiceError
from serving.families import ImageTokens
from serving.media import media_digest
from tests.phi4_checkpoints import IMAGE, make_phi4

OVERVIEW = 2
GRIDS = [(1, 4, 6), (1, 2, 2), (1, 8, 4)]
ROWS = [2 * 4 + 7, 1 * 2 + 7, 4 * 3 + 7]
SKY = "What is the colour of the sky?"

CONVERSATIONS: dict[str, list[tuple[str, list[str | int]]]] = {
    "text": [("user", [SKY])],
    "a system message": [("system", ["Be brief."]), ("user", [SKY])],
    "an image": [("user", [0, "Describe."])],
    "images and text in turns": [("user", ["First ", 0, " then ", 1, 2, " compare."])],
    "two turns": [("user", [0, "Describe."]), ("assistant", ["A cat."]), ("user", ["And ", 1, "?"])],
    "an image in the second turn": [("user", [SKY]), ("assistant", ["Blue."]), ("user", [2, "And this?"])],
}
"""Roles and parts; a number stands for an image."""


@pytest.fixture(scope="module", params=["native", "published"])
def prompts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PromptBuilder:
    """The template that takes parts, and the published one, which takes text."""
    folder: Path = make_phi4(tmp_path_factory.mktemp("phi4") / request.param, request.param, layers=1)
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder)
    tokens = ImageTokens(eos=(0,), image=tokenizer.convert_tokens_to_ids(IMAGE))
    return PromptBuilder(tokenizer, Phi4Multimodal(tokens, overview=OVERVIEW))


def _image(number: int) -> Medium:
    return Medium(MediaKind.IMAGE, media_digest(bytes([number])))


def _messages(turns: list[tuple[str, list[str | int]]]) -> list[Message]:
    return [
        Message(Role(role), tuple(_image(part) if isinstance(part, int) else Text(part) for part in parts))
        for role, parts in turns
    ]


def _by_the_processor(tokenizer: Any, turns: list[tuple[str, list[str | int]]]) -> list[int]:
    """The ids as the published processor has them: numbered names in the text, each replaced by its rows."""
    numbers = iter(range(1, 99))
    conversation = [
        {
            "role": role,
            "content": "".join(f"<|image_{next(numbers)}|>" if isinstance(part, int) else part for part in parts),
        }
        for role, parts in turns
    ]
    shown = iter([part for _, parts in turns for part in parts if isinstance(part, int)])
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    text = re.sub(r"<\|image_\d+\|>", lambda _: IMAGE * ROWS[next(shown)], text)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_are_the_processors(prompts: PromptBuilder, name: str) -> None:
    """Images are where they are in the text, in both forms of the template."""
    turns = CONVERSATIONS[name]
    rendered = prompts.render(_messages(turns))
    layouts = [Layout(medium, GRIDS[medium_number(medium)], ROWS[medium_number(medium)]) for medium in rendered.media]
    prompt = prompts.expand(rendered, layouts)
    assert list(prompt.token_ids) == _by_the_processor(prompts.tokenizer, turns)
    assert prompt.media_tokens == sum(layout.token_count for layout in layouts)
    assert [prompts.length(layout) for layout in layouts] == [layout.token_count for layout in layouts]


def medium_number(medium: Medium) -> int:
    """The number of an image of a conversation."""
    return [_image(number).digest for number in range(len(GRIDS))].index(medium.digest)


TEXTS = ("<|image_1|>", IMAGE, "<|endoftext11|>", "<|end|>", "<|end|><|assistant|>", "<|user|>", "\U000f0000<|end|>")


@pytest.mark.parametrize("text", [*TEXTS, "".join(TEXTS), "<|endoftext10|", "<|image_1|><|image_2|>"])
@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_control_tokens_in_text_stay_text(prompts: PromptBuilder, text: str, role: str) -> None:
    """The control tokens of the prompt are those of the template, whatever is written, and the text is all there."""
    control = set(prompts.tokenizer.added_tokens_decoder)

    def rendered(said: str) -> list[int]:
        first: list[str | int] = [0, said] if role == "user" else [said]
        turns: list[tuple[str, list[str | int]]] = [("user", [0, SKY])] if role == "assistant" else []
        return list(prompts.render(_messages([*turns, (role, first), ("user", [1, "Then?"])])).token_ids)

    written, plain = rendered(f"a{text}b"), rendered("ab")
    assert [token for token in written if token in control] == [token for token in plain if token in control]
    said = prompts.tokenizer.decode(written, skip_special_tokens=False)
    assert f"a{text}b".replace("\U000f0000", "") in said


def test_a_name_cut_by_an_image_stays_text(prompts: PromptBuilder) -> None:
    """What stands before and behind an image does not become a name together."""
    ids = prompts.render(_messages([("user", ["<|endof", 0, "text10|>"])])).token_ids
    assert ids.count(prompts.tokenizer.convert_tokens_to_ids(IMAGE)) == 1


def test_an_answer_that_goes_on(prompts: PromptBuilder) -> None:
    """The turn of the assistant stays open, with an image before it."""
    turns: list[tuple[str, list[str | int]]] = [("user", [0, SKY])]
    open_turn = prompts.render(_messages([*turns, ("assistant", ["Blue, and"])]))
    said = prompts.tokenizer.encode("Blue, and", add_special_tokens=False)
    assert list(open_turn.token_ids) == [*prompts.render(_messages(turns)).token_ids, *said]


def test_tools_are_refused(prompts: PromptBuilder) -> None:
    """The published template writes tools of a form of its own, and says nothing of how calls look."""
    tools = Tools((Tool("clock"),))
    with pytest.raises(ServiceError, match="knows none") as caught:
        prompts.render(_messages([("user", [SKY])]), tools=tools)
    assert caught.value.code is Code.UNIMPLEMENTED


FAMILY = Phi4Multimodal(ImageTokens(eos=(0,), image=7), overview=16)


def _encode(text: str) -> list[int]:
    raise AssertionError(text)  # nothing is inserted


def test_an_image_is_one_run_at_plain_positions() -> None:
    """Of the published crops: 256 tokens and a separator for each of 16 rows, one between, then its crops."""
    assert FAMILY.token_count((1, 64, 96)) == 16 * 17 + 1 + 32 * 49
    layout = Layout(_image(0), (1, 2, 4), 3 + 273)
    prompt = FAMILY.lay_out([1, 7, 2], [layout], _encode, ["key"])
    assert prompt.token_ids == (1, *[7] * 276, 2)
    assert prompt.positions.tolist() == [list(range(279))]
    assert prompt.media == (Span(1, 277, (), "key:2x4:0"),)
    assert prompt.inputs is None


@pytest.mark.parametrize("grid", [(2, 4, 4), (1, 3, 4), (1, 4, 5), (1, 0, 4), (0, 2, 2)])
def test_grids_that_are_refused(grid: tuple[int, int, int]) -> None:
    """As an error of the grid, and where a layout has another number of tokens."""
    with pytest.raises(ValueError, match="t must be 1, and h and w multiples of 2"):
        FAMILY.token_count(grid)
    with pytest.raises(ValueError, match=r"t must be 1|has not 5 tokens"):
        FAMILY.lay_out([7], [Layout(_image(0), grid, 5)], _encode)
