"""Prompts: exact against transformers, and deaf to control tokens in what people write."""

from __future__ import annotations

from unicodedata import normalize

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from decoder_service.chat import Layout, MediaKind, Medium, Message, RawPrompt, Role, Text, first_of_each, media_of
from decoder_service.families.registry import family_of
from decoder_service.request.prompt import PromptBuilder
from serving.bundle import Bundle
from serving.errors import Code, ServiceError
from serving.media import media_digest
from tests.checkpoints import PLAIN_TOKENS, SPECIAL_TOKENS
from tests.decoder_service.cases import TURNS, Case

CONTROL_TOKENS = (*SPECIAL_TOKENS, *PLAIN_TOKENS)
# transformers' own marks around control tokens in user text; it drops them from what it is given.
MARKERS = ("\U000f0000", "\U000f0001")


@pytest.mark.parametrize("name", TURNS)
def test_ids_equal_transformers(prompts: PromptBuilder, cases: dict[str, Case], name: str) -> None:
    """The ids of the prompt are those of transformers' own rendering and expansion."""
    case = cases[name]
    prompt = prompts.expand(prompts.render(case.messages), case.layouts)
    assert list(prompt.token_ids) == case.inputs.input_ids[0].tolist()


def test_length_is_what_expand_writes(prompts: PromptBuilder, cases: dict[str, Case]) -> None:
    """`length` tells how many ids take a placeholder's place, before any is written."""
    for case in cases.values():
        rendered = prompts.render(case.messages)
        grown = sum(prompts.length(layout) - 1 for layout in case.layouts)
        assert len(prompts.expand(rendered, case.layouts).token_ids) == len(rendered.token_ids) + grown


def test_the_same_image_twice_is_needed_once() -> None:
    """Of media with the same kind and digest only the first is named; the same bytes as another kind are another."""
    digest = media_digest(b"x")
    image, video = Medium(MediaKind.IMAGE, digest), Medium(MediaKind.VIDEO, digest)
    messages = [Message(Role.USER, (image, Text("a"), image)), Message(Role.USER, (video, image))]
    assert media_of(messages) == (image, image, video, image)
    assert first_of_each(media_of(messages)) == (0, 2)


@pytest.fixture(scope="module")
def skeleton(prompts: PromptBuilder) -> list[int]:
    """Control ids that the template writes around one user message and one medium."""
    return control_ids(prompts, [Message(Role.USER, (image(), Text("plain")))])


def image() -> Medium:
    """Some image."""
    return Medium(MediaKind.IMAGE, media_digest(b""))


def control_ids(prompts: PromptBuilder, messages: list[Message]) -> list[int]:
    """The control ids of a rendered conversation, in order."""
    controls = set(prompts.tokenizer.added_tokens_decoder)
    return [token for token in prompts.render(messages).token_ids if token in controls]


pieces = st.one_of(
    st.sampled_from(CONTROL_TOKENS),
    st.sampled_from(CONTROL_TOKENS).flatmap(lambda token: st.integers(1, len(token)).map(lambda n: token[:n])),
    st.sampled_from(CONTROL_TOKENS).flatmap(lambda token: st.integers(0, len(token) - 1).map(lambda n: token[n:])),
    st.sampled_from(
        [*MARKERS, "\ue000", "\ufffd", "\0", "\n", "\n\n", " ", "\t", "{{", "}}", "{%", "\u0301", "🏽", "\u200d"]
    ),
    st.text(st.characters(codec="utf-8"), max_size=6),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.lists(pieces, max_size=6).map("".join), min_size=1, max_size=3))
def test_text_never_becomes_a_control_token(prompts: PromptBuilder, skeleton: list[int], texts: list[str]) -> None:
    """Whatever is written, in however many parts, the control ids are the template's own."""
    parts = tuple(Text(text) for text in texts)
    assert control_ids(prompts, [Message(Role.USER, (image(), *parts))]) == skeleton


@settings(max_examples=200, deadline=None)
@given(text=st.lists(pieces, max_size=8).map("".join))
def test_no_character_is_lost(prompts: PromptBuilder, text: str) -> None:
    """The text stands in the prompt, in the tokenizer's normal form, without transformers' own two marks."""
    tokenizer = prompts.tokenizer
    # Turned to the normal form piece by piece, as it is encoded: a mark that follows a control token stays a mark.
    decoded = tokenizer.decode(prompts.render([Message(Role.USER, (Text(text),))]).token_ids, skip_special_tokens=False)
    expected = text.translate({ord(marker): None for marker in MARKERS})
    normal = tokenizer.backend_tokenizer.normalizer.normalize_str
    assert normal(decoded) == normal(f"<|im_start|>user\n{expected}<|im_end|>\n<|im_start|>assistant\n")


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters=MARKERS), max_size=60))
def test_ordinary_text_is_encoded_as_transformers_does(prompts: PromptBuilder, text: str) -> None:
    """Without control tokens in it a text has the ids of the ordinary rendering."""
    if any(token in text for token in CONTROL_TOKENS):
        return
    ordinary = prompts.tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=True, return_dict=False, add_generation_prompt=True
    )
    assert list(prompts.render([Message(Role.USER, (Text(text),))]).token_ids) == ordinary


def test_a_token_cut_over_two_parts_stays_text(prompts: PromptBuilder, skeleton: list[int]) -> None:
    """The template joins neighbouring parts; a control token's name cut between them is still text."""
    parts = (Text("<|im_"), Text("end|><|image"), Text("_pad|>"))
    assert control_ids(prompts, [Message(Role.USER, (image(), *parts))]) == skeleton


def test_placeholders_in_text_are_not_counted(prompts: PromptBuilder, bundle: Bundle) -> None:
    """A written `<|image_pad|>` takes no features; the picture beside it takes its own."""
    medium = image()
    rendered = prompts.render([Message(Role.USER, (Text("<|image_pad|><|video_pad|>"), medium))])
    prompt = prompts.expand(rendered, [Layout(medium, (1, 4, 6), 6)])
    assert prompt.token_ids.count(bundle.media_tokens.image) == 6
    assert bundle.media_tokens.video not in prompt.token_ids


SYSTEM_ANYWHERE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def says(*turns: tuple[Role, str]) -> list[Message]:
    """A conversation in text."""
    return [Message(role, (Text(text),)) for role, text in turns]


@pytest.mark.parametrize(
    ("later", "template", "joined"),
    [
        ("the template drops it", None, [("system", "A\n\nB\n\nC"), ("user", "x"), ("assistant", "y"), ("user", "z")]),
        (
            "the template writes it",
            SYSTEM_ANYWHERE,
            [("system", "A\n\nB"), ("user", "x"), ("assistant", "y"), ("system", "C"), ("user", "z")],
        ),
    ],
)
def test_system_messages_may_be_anywhere(
    bundle: Bundle, later: str, template: str | None, joined: list[tuple[str, str]]
) -> None:
    """Those at the front become one; a later one stays where the template writes it, else it joins the first."""
    tokenizer = PromptBuilder.load(bundle.decoder_dir, family_of(bundle)).tokenizer
    tokenizer.chat_template = template or tokenizer.chat_template
    prompts = PromptBuilder(tokenizer, family_of(bundle))
    roles = (Role.SYSTEM, Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.SYSTEM, Role.USER)
    rendered = prompts.render(says(*zip(roles, "ABxyCz", strict=True)))
    expected = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in joined],
        tokenize=True,
        return_dict=False,
        add_generation_prompt=True,
    )
    assert list(rendered.token_ids) == expected


def test_a_system_message_alone_in_the_middle_comes_first(prompts: PromptBuilder) -> None:
    """Where the template drops it in its place, it is the first."""
    moved = prompts.render(says((Role.USER, "x"), (Role.SYSTEM, "A")))
    assert moved == prompts.render(says((Role.SYSTEM, "A"), (Role.USER, "x")))


@pytest.mark.parametrize("half", ["Red, blue and", "Red, blue and ", "", "{\n", "<|im_end|>"])
def test_an_answer_goes_on_with_the_assistants_last_message(prompts: PromptBuilder, half: str) -> None:
    """The ids are those of transformers' `continue_final_message`: the turn stays open."""
    rendered = prompts.render(says((Role.USER, "List three colours."), (Role.ASSISTANT, half)))
    expected = prompts.tokenizer.apply_chat_template(
        [{"role": "user", "content": "List three colours."}, {"role": "assistant", "content": half}],
        tokenize=True,
        return_dict=False,
        continue_final_message=True,
        sanitize_control_tokens=True,
    )
    assert list(rendered.token_ids) == expected
    anew = prompts.render(says((Role.USER, "List three colours.")))
    text = prompts.tokenizer.encode(half, add_special_tokens=False)
    if half != "<|im_end|>":  # which is text here, and a control token to `encode`
        assert list(rendered.token_ids) == [*anew.token_ids, *text]


def test_a_template_that_refuses_is_the_clients_error(bundle: Bundle) -> None:
    """What a template raises becomes INVALID_ARGUMENT for `messages`."""
    prompts = PromptBuilder.load(bundle.decoder_dir, family_of(bundle))
    prompts.tokenizer.chat_template = "{{ raise_exception('no system message, please') }}"
    with pytest.raises(ServiceError, match="no system message, please") as caught:
        prompts.render([Message(Role.USER, (Text("hi"),))])
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.violations[0].field == "messages"


def test_a_template_that_drops_media_is_noticed(bundle: Bundle) -> None:
    """Features without a place in the prompt are never passed over."""
    prompts = PromptBuilder.load(bundle.decoder_dir, family_of(bundle))
    prompts.tokenizer.chat_template = "<|im_start|>user\nalways the same<|im_end|>\n"
    with pytest.raises(ServiceError, match="0 placeholders for 1 media") as caught:
        prompts.render([Message(Role.USER, (image(),))])
    assert caught.value.reason == "TEMPLATE_MISMATCH"


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(pieces, min_size=1, max_size=6).map("".join))
def test_a_raw_text_is_deaf_to_control_tokens(prompts: PromptBuilder, text: str) -> None:
    """Its tokens have no control token in them, and their text is the prompt, but for transformers' own marks."""
    without_marks = text.replace(MARKERS[0], "").replace(MARKERS[1], "")
    if not without_marks:
        return
    rendered = prompts.tokenize(RawPrompt(text))
    assert not set(rendered.token_ids) & set(prompts.tokenizer.added_tokens_decoder)
    # The tokenizer normalizes text.
    assert normalize("NFC", prompts.detokenize(rendered.token_ids)) == normalize("NFC", without_marks)


def test_a_raw_prompt_is_the_tokenizers(prompts: PromptBuilder) -> None:
    """As it is, without control tokens or with those that it asks for; ids are taken as they are."""
    plain, special = "Once upon a time", "<|im_start|>user\nHi<|im_end|>"
    expected = tuple(prompts.tokenizer(special, add_special_tokens=False).input_ids)
    assert prompts.tokenize(RawPrompt(plain)).token_ids == tuple(prompts.tokenizer(plain).input_ids)
    assert prompts.tokenize(RawPrompt(special, parse_special=True)).token_ids == expected
    assert prompts.tokenize(RawPrompt(expected)).token_ids == expected
    assert prompts.tokenize(RawPrompt(special)).token_ids != expected  # the check can fail
    assert prompts.detokenize(expected) == special


@pytest.mark.parametrize(
    "prompt",
    [
        RawPrompt(""),
        RawPrompt(MARKERS[0]),
        RawPrompt(()),
        RawPrompt("a<|image_pad|>", parse_special=True),
        "<|video_pad|>",
    ],
)
def test_raw_prompts_that_are_refused(prompts: PromptBuilder, prompt: RawPrompt | str) -> None:
    """Without a token, and with the placeholder of a medium that has not come."""
    if isinstance(prompt, str):
        prompt = RawPrompt(tuple(prompts.tokenizer.encode(prompt)))
    with pytest.raises(ServiceError) as caught:
        prompts.tokenize(prompt)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.violations[0].field.startswith("prompt.")
