"""The tests of every family on more shapes of Qwen2.5-VL, and what takes longer: run by `tests/families/run`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import exporter
import exporter.measuring
from exporter import pipeline
from serving.bundle import Bundle
from tests.checkpoints import make_qwen2_5_vl
from tests.integration import test_parity, test_split
from tests.pictures import noise, png
from tests.system import triptych_system
from triptych import Client, Image, user
from triptych_cli import main as cli

test_prompt_and_greedy_tokens = test_parity.test_prompt_and_greedy_tokens_equal_transformers
test_swapped_images = test_parity.test_swapped_images_are_another_question
whole = test_split.whole
test_split_equals_whole = test_split.test_split_equals_whole
test_grids_positions_features_and_logits = test_split.test_grids_positions_features_and_logits_equal_transformers
test_without_a_feature_map = test_split.test_without_a_feature_map_the_logits_are_others
test_flat_positions = test_split.test_flat_positions_are_others

pytestmark = pytest.mark.timeout(900)  # measuring the encoder's types computes on all cores

TOKENS = 12
CONTROLS = ("<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base shape."""
    return make_qwen2_5_vl(tmp_path_factory.mktemp("quantized") / "checkpoint")


@pytest.fixture(scope="module")
def quantized(source: Path) -> Bundle:
    """As a user exports it: calibrated, with both graphs, and with the encoder's types measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "measure_apart", exporter.measuring.measure_apart)
        return exporter.export(source, source.parent / "bundle", calibrate=True)


@pytest.fixture(scope="module")
def client(quantized: Bundle) -> Iterator[Client]:
    """All services with its INT4 and INT8 graphs."""
    with triptych_system(quantized.root) as address, Client(address) as opened:
        yield opened


def test_an_export_is_calibrated_and_measured(quantized: Bundle) -> None:
    """What the encoder costs in bfloat16 is known, and small."""
    assert quantized.decoder.calibration is not None
    assert set(quantized.decoder.graphs) == {"int4", "int8"}
    assert quantized.encoder_types is not None
    assert quantized.encoder_types["bfloat16"].divergence < 0.5


def test_control_tokens_in_text_stay_text(client: Client, quantized: Bundle) -> None:
    """Their names in a user's words are no control tokens, beside a picture and without."""
    text = "".join(CONTROLS)
    tokens = quantized.tokens
    special = {tokens.image, tokens.video, tokens.vision_start}
    alone = client.answer([user(text)], max_tokens=1, return_prompt_token_ids=True)
    assert not special & set(alone.prompt_token_ids)
    shown = client.answer([user(Image(png(noise(60, 60))), text)], max_tokens=1, return_prompt_token_ids=True)
    assert shown.prompt_token_ids.count(tokens.image) == shown.usage.media_tokens
    assert tokens.video not in shown.prompt_token_ids


def test_equal_tokens_and_other_pictures_are_other_prompts(client: Client) -> None:
    """In any order and at once each picture has its answer; what is asked again is found in the prefix cache."""
    files = [png(noise(160, 128, seed)) for seed in (51, 52)]

    def ask(which: int) -> list[int]:
        return list(client.answer([user(Image(files[which]), "Describe.")], max_tokens=TOKENS).token_ids)

    first = [ask(0), ask(1)]
    assert first[0] != first[1]
    with ThreadPoolExecutor(4) as pool:
        order = [0, 1, 1, 0, 0, 1, 0, 1]
        assert list(pool.map(ask, order)) == [first[which] for which in order]
    again = client.answer([user(Image(files[0]), "Describe.")], max_tokens=TOKENS)
    assert again.usage.cached_tokens > again.usage.media_tokens


def test_evaluate(source: Path, quantized: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """`triptych evaluate` compares the graphs with transformers: INT8 is nearer than INT4."""
    cli.main(["evaluate", str(quantized.root), "--reference", str(source), "--limit", "8", "--json"])
    found = json.loads(capsys.readouterr().out)["divergence"]
    by_graph = {(row["prefill_graph"], row["decode_graph"], row["encoder"]): row for row in found["rows"]}
    int4 = by_graph["int4", "int4", "float32"]["prefill"]["mean"]
    int8 = by_graph["int8", "int4", "float32"]["prefill"]["mean"]
    assert 0 < int8 < int4 < 1
