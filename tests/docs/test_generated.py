"""What is generated from the code is what the code says now."""

from __future__ import annotations

import pytest

from tools.docs import pages, reasons, sentences, settings, wire


def test_generated_parts_are_fresh() -> None:
    """`python -m tools.docs` would change nothing; where this fails, run `make docs`."""
    assert pages.stale() == []


def test_every_part_is_on_a_page() -> None:
    """Each generated part stands on exactly one page, so that none can be lost with its markers."""
    assert sorted(pages.parts_in_use()) == sorted(pages.PARTS)


def test_the_wire_page_has_every_message_call_and_field() -> None:
    """Nothing of the descriptors is left out."""
    text = wire.markdown()
    for file in wire.descriptors().file:
        for message in file.message_type:
            assert f"### {message.name}\n" in text
            assert all(f"| `{field.name}` | {field.number} |" in text for field in message.field)
        for enum in file.enum_type:
            assert all(f"| `{value.name}` | {value.number} |" in text for value in enum.value)
        for service in file.service:
            assert all(f"| `{method.name}` |" in text for method in service.method)


def test_comments_of_the_protos_are_on_the_wire_page() -> None:
    """A field's comment is in the row of the field, with the bars of control tokens escaped."""
    text = wire.markdown()
    assert "(`<\\|im_end\\|>`, `<\\|image_pad\\|>`) stay plain text. |" in text
    assert "| `seed` | 9 | optional uint64 | Makes sampling repeatable on one server build." in text
    assert "| `logit_bias` | 11 | map of uint32 to float |" in text


@pytest.mark.parametrize("module", [module for module, _ in settings.SERVICES])
def test_the_settings_have_every_field(module: str) -> None:
    """Each setting of each service is in a table, with its flag and its variable."""
    text = settings.markdown()
    fields = dict(settings.SERVICES)[module].model_fields
    assert all(f"`--{name.replace('_', '-')}`" in text and f"{name.upper()}`" in text for name in fields)


def test_every_reason_in_the_code_is_explained() -> None:
    """A reason that some code fails for is in the table."""
    told = [*reasons.CLIENT, *reasons.INSIDE]
    untold = sorted({place.pattern for place in reasons.scan() if not any(map(place.is_of, told))})
    assert untold == []


@pytest.mark.parametrize("reason", [*reasons.CLIENT, *reasons.INSIDE])
def test_every_explained_reason_is_in_the_code(reason: str) -> None:
    """No row is about a reason that nothing fails for any more."""
    assert any(place.is_of(reason) for place in reasons.scan())


def test_the_scan_of_reasons_can_see() -> None:
    """Negative control: one reason for each way in which the code spells them is found where it is."""
    found = {(place.pattern, place.package) for place in reasons.scan()}
    assert found >= {
        ("ENCODER_MISMATCH", "decoder_service"),  # ServiceError
        ("FIELD_INVALID", "gateway"),  # the default of `invalid`
        ("TOO_MANY_PARTS", "gateway"),  # a loop's variable
        ("QUEUE_FULL", "vision_service"),  # `overloaded`
        ("ENGINE_LOST", "decoder_service"),  # `unavailable`
    }


@pytest.mark.parametrize(
    ("said", "advice"),
    [(sentences.of_export(), sentences.EXPORT), (sentences.of_opening(), sentences.OPENING)],
    ids=["export", "opening"],
)
def test_every_sentence_has_its_own_advice(said: list[str], advice: dict[str, str]) -> None:
    """Each sentence of the code has exactly one piece of advice, and each piece of advice its sentences."""
    found = {sentence: sentences.keys(sentence, advice) for sentence in said}
    assert [sentence for sentence, keys in found.items() if len(keys) != 1] == []
    assert {keys[0] for keys in found.values()} == set(advice)
