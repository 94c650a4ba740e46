"""The committed checkpoint is what the recipe makes."""

import json
from pathlib import Path

from transformers import AutoConfig

from demo.checkpoint import CHECKPOINT
from demo.config import CONTEXT_LENGTH
from demo.tokenizer import save_tokenizer
from recipes.demo_model.config import IMAGE_PREPROCESSOR, VIDEO_PREPROCESSOR, model_config
from recipes.demo_model.train import recipe_tokenizer


def test_its_tokenizer_is_the_recipes(tmp_path: Path) -> None:
    """What the recipe would build today is what the checkpoint was trained with, file for file."""
    save_tokenizer(recipe_tokenizer(), tmp_path, CONTEXT_LENGTH)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert {"tokenizer.json", "vocab.json", "merges.txt"} <= set(written)
    for name in written:
        assert (tmp_path / name).read_bytes() == (CHECKPOINT / name).read_bytes(), name


def test_its_settings_are_the_recipes() -> None:
    """Preprocessing and architecture are those that the recipe would write today."""
    for name, settings in (
        ("preprocessor_config.json", IMAGE_PREPROCESSOR),
        ("video_preprocessor_config.json", VIDEO_PREPROCESSOR),
    ):
        assert json.loads((CHECKPOINT / name).read_text(encoding="utf-8")) == settings
    fresh = model_config(recipe_tokenizer().get_vocab())
    stored = AutoConfig.from_pretrained(CHECKPOINT)
    assert stored.vision_config.depth == fresh.vision_config.depth
    assert stored.vision_config.deepstack_visual_indexes == fresh.vision_config.deepstack_visual_indexes
    assert stored.text_config.num_hidden_layers == fresh.text_config.num_hidden_layers
