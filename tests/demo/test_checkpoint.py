"""The committed checkpoint: it is a true Qwen3-VL, small, and it sees."""

import json

import pytest
from transformers import AutoConfig

from demo.checkpoint import CHECKPOINT
from demo.evaluate import evaluate, held_out_cases, score
from demo.local import LocalModel
from demo.pictures import EXAMPLES, PICTURES


@pytest.fixture(scope="module")
def model() -> LocalModel:
    """The checkpoint through transformers, in float32."""
    return LocalModel()


def test_it_is_laid_out_like_a_published_repository() -> None:
    """The files of a Qwen3-VL repository are there, and at most 20 MB in all."""
    names = {path.name for path in CHECKPOINT.iterdir()}
    assert names >= {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
    }
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 20e6


def test_it_is_a_true_qwen3_vl() -> None:
    """DeepStack with three levels, interleaved M-RoPE, grouped-query attention and tied embeddings."""
    config = AutoConfig.from_pretrained(CHECKPOINT)
    text, vision = config.text_config, config.vision_config
    assert config.model_type == "qwen3_vl"
    assert len(vision.deepstack_visual_indexes) == 3
    assert text.rope_parameters["mrope_interleaved"]
    assert sum(text.rope_parameters["mrope_section"]) == text.head_dim // 2
    assert text.num_key_value_heads < text.num_attention_heads
    assert config.tie_word_embeddings
    assert (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size) == (16, 2, 2)
    assert text.hidden_size % 32 == text.intermediate_size % 32 == 0


def test_its_size_is_three_to_eight_million_parameters(model: LocalModel) -> None:
    """The count of distinct parameters."""
    assert 3e6 <= sum(parameter.numel() for parameter in model.model.parameters()) <= 8e6


def test_it_describes_the_example_pictures(model: LocalModel) -> None:
    """The pictures of the quick start are answered as the quick start says, and are on disk as drawn."""
    for picture in PICTURES:
        assert model.answer([picture.draw()], picture.question) == picture.answer
        assert (EXAMPLES / picture.name).exists()


def test_it_answers_held_out_questions(model: LocalModel) -> None:
    """A handful of each skill, through the same scoring that judges the whole system."""
    for result in evaluate(model.answer, count=8):
        assert result.accuracy >= 0.75, [(case.question, case.expected, answer) for case, answer in result.wrong]


def test_swapped_pictures_give_wrong_answers(model: LocalModel) -> None:
    """Negative control: shown another case's picture, the model describes that one instead."""
    cases = held_out_cases("describe", 16)
    swapped = [(other.images, case.question) for case, other in zip(cases, cases[1:] + cases[:1], strict=True)]
    assert score(cases, model.answer_all(swapped)).accuracy <= 0.2


def test_without_deepstack_it_sees_less(model: LocalModel) -> None:
    """Negative control: with the DeepStack features zeroed, far fewer scenes are described rightly."""
    cases = held_out_cases("describe", 24)
    chats = [(case.images, case.question) for case in cases]
    whole = score(cases, model.answer_all(chats)).accuracy
    blind = score(cases, LocalModel(deepstack=False).answer_all(chats)).accuracy
    assert blind <= whole - 0.25


def test_int4_weights_still_see() -> None:
    """With the text model's weights rounded to INT4 the scenes are still described rightly."""
    cases = held_out_cases("describe", 24)
    answers = LocalModel(int4=True).answer_all([(case.images, case.question) for case in cases])
    assert score(cases, answers).accuracy >= 0.85


def test_generation_stops_at_the_end_of_turn() -> None:
    """Both end tokens are named, as in Qwen's own generation settings."""
    settings = json.loads((CHECKPOINT / "generation_config.json").read_text(encoding="utf-8"))
    vocabulary = json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    ids = {token["content"]: token["id"] for token in vocabulary}
    assert settings["eos_token_id"] == [ids["<|im_end|>"], ids["<|endoftext|>"]]
