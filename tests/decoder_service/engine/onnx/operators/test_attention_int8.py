"""Our attention over 8-bit keys and values is what numpy gives by the same scheme, and no border changes a bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from tests.decoder_service.engine.onnx.operators.graphs import both, needs_avx512_vnni
from tests.decoder_service.engine.onnx.operators.test_attention import (
    attention_beside_a_chunk,
    feed,
    one_attention,
    side_by_side,
)

_SHAPES = [(4, 2, 16), (6, 2, 32), (4, 4, 128), (9, 1, 80), (32, 1, 256)]
_KEYS_AND_VALUES = ("past_key", "past_value")
Tensors = dict[str, NDArray[Any]]


def rotated(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows times a Hadamard matrix, in parts of the largest power of two that divides their width."""
    width = rows.shape[-1]
    part = width & -width
    turned = rows.copy()
    step = 1
    while step < part:
        pairs = turned.reshape(-1, 2, step)
        turned = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(rows.shape)
        step *= 2
    return turned * (np.float32(1) / np.sqrt(np.float32(part)))


def packed(rows: NDArray[np.float32]) -> NDArray[np.int8]:
    """Rows as they are stored: int8 numbers, then the bytes of their scale."""
    turned = rotated(rows)
    scales = np.maximum(np.abs(turned).max(-1, keepdims=True) / np.float32(127), np.float32(1e-30))
    numbers = np.rint(turned / scales).astype(np.int8)
    return np.concatenate([numbers, scales.view(np.int8)], -1)


def unpacked(stored: NDArray[np.int8]) -> NDArray[np.float32]:
    """Rows as they are read, not rotated."""
    numbers, scales = stored[..., :-4], np.ascontiguousarray(stored[..., -4:]).view(np.float32)
    return rotated(numbers.astype(np.float32) * scales)


def int8(heads: int, kv_heads: int, width: int) -> ort.InferenceSession:
    """Our operator alone."""
    return both(one_attention(heads, kv_heads, width), head_size=width, kv_dtype="int8")[1]


def stored(tensors: Tensors) -> Tensors:
    """The same inputs with keys and values as they are stored."""
    return {**tensors, **{name: packed(tensors[name]) for name in tensors if "past" in name}}


def given_back(tensors: Tensors, width: int) -> Tensors:
    """The same inputs in float32, with all keys and values as they are read, the new ones too."""
    read = {name: unpacked(packed(tensors[name])) for name in _KEYS_AND_VALUES}
    for name in ("key", "value"):
        read[name] = unpacked(packed(tensors[name].reshape(-1, width))).reshape(tensors[name].shape)
    return {**tensors, **read}


@needs_avx512_vnni
@pytest.mark.parametrize(("heads", "kv_heads", "width"), _SHAPES)
def test_it_computes_what_the_scheme_gives(heads: int, kv_heads: int, width: int) -> None:
    """Keys and values are stored bit for bit as by numpy; attention to them is ONNX Runtime's in float32."""
    theirs = both(one_attention(heads, kv_heads, width), head_size=width)[0]
    ours = int8(heads, kv_heads, width)
    for case in (
        {"lengths": [1]},
        {"lengths": [65, 1, 192, 33, 32]},
        {"lengths": [70], "sequence": 70},
        {"lengths": [192], "sequence": 100},
        {"lengths": [34], "sequence": 2},
    ):
        tensors = feed(heads, kv_heads, width, **case)  # type: ignore[arg-type]
        expected = theirs.run(["output"], given_back(tensors, width))[0]
        output, *present = ours.run(None, stored(tensors))
        np.testing.assert_allclose(output, expected, atol=1e-4)
        sequence = tensors["key"].shape[1]
        for row, length in enumerate(case["lengths"]):  # type: ignore[arg-type]
            for name, past, held in zip(("key", "value"), _KEYS_AND_VALUES, present, strict=True):
                fresh = tensors[name][row].reshape(sequence, kv_heads, width).swapaxes(0, 1)
                before = tensors[past][row, :, : length - sequence]
                np.testing.assert_array_equal(held[row, :, :length], packed(np.concatenate([before, fresh], 1)))
        # Negative control: keys that are not rounded are felt.
        unrounded = theirs.run(["output"], tensors)[0]
        assert max(case["lengths"]) == 1 or np.abs(output - unrounded).max() > 1e-3  # type: ignore[type-var]


@needs_avx512_vnni
def test_where_a_chunk_is_cut_changes_no_bit() -> None:
    """Nor do the answers in the same run; a token sees its own chunk's keys as all later tokens see them."""
    beside = attention_beside_a_chunk("int8")
    chunk, answers = stored(feed(6, 2, 32, lengths=[90], sequence=41)), stored(feed(6, 2, 32, lengths=[65, 7, 192]))
    none = {name: value[:0] if value.ndim > 1 or name == "seqlens_k" else value for name, value in answers.items()}

    def run(rows: Tensors, part: Tensors) -> list[NDArray[Any]]:
        return beside.run(None, side_by_side(rows, part))

    whole = run(none, chunk)
    with_answers = run(answers, chunk)
    np.testing.assert_array_equal(with_answers[0][:, 3:], whole[0])
    outputs, past = [], {name: chunk[name] for name in _KEYS_AND_VALUES}
    for start, end in ((0, 1), (1, 8), (8, 41)):
        part = {name: chunk[name][:, start:end] for name in ("query", "key", "value")}
        lengths = {"seqlens_k": np.array([49 + end - 1], np.int32), "total": np.array([49 + end], np.int32)}
        output, *_, keys, values = run(none, {**chunk, **part, **past, **lengths})
        outputs.append(output)
        past = {"past_key": keys, "past_value": values}
    np.testing.assert_array_equal(np.concatenate(outputs, 1), whole[0])
    np.testing.assert_array_equal(past["past_key"][:, :, :90], whole[3][:, :, :90])
    # Negative control: another key in the first part is felt in the last.
    chunk["key"][0, 0] += 1
    assert np.abs(run(none, chunk)[0][:, 8:] - whole[0][:, 8:]).max() > 1e-3


@needs_avx512_vnni
def test_a_row_is_what_it_is_alone() -> None:
    """To the last bit, whatever else is in the batch."""
    ours = int8(6, 2, 32)
    tensors = stored(feed(6, 2, 32, lengths=[65, 7, 192, 33]))
    together = ours.run(["output"], tensors)[0]
    for row in range(4):
        alone = {name: value if name == "total" else value[row : row + 1] for name, value in tensors.items()}
        np.testing.assert_array_equal(ours.run(["output"], alone)[0][0], together[row])


@needs_avx512_vnni
def test_an_outlier_channel_costs_the_others_little() -> None:
    """A hundred times the others, in all keys: each row is rounded as finely as if there were none, nearly."""
    tensors = feed(4, 2, 128, lengths=[192])
    plain = tensors["past_key"].copy()
    tensors["past_key"][..., 5] *= 100
    difference = unpacked(packed(tensors["past_key"])) - tensors["past_key"]
    error = np.sqrt(np.mean(np.delete(difference, 5, -1) ** 2))
    unrotated = np.abs(tensors["past_key"]).max(-1).mean() / 127 / np.sqrt(12)
    assert error < 0.25 * unrotated
    # Negative control: without an outlier there is less.
    assert np.sqrt(np.mean((unpacked(packed(plain)) - plain) ** 2)) < error
    tensors["query"].reshape(-1, 128)[:, 5] /= 100
    theirs = both(one_attention(4, 2, 128), head_size=128)[0]
    output = int8(4, 2, 128).run(["output"], stored(tensors))[0]
    np.testing.assert_allclose(output, theirs.run(["output"], given_back(tensors, 128))[0], atol=1e-4)


@needs_avx512_vnni
def test_zeros_and_what_is_no_number() -> None:
    """Zeros stay zeros; a number that is none makes its row so, and is noticed."""
    ours = int8(4, 2, 32)
    tensors = stored(feed(4, 2, 32, lengths=[40], sequence=2))
    tensors["value"][0, 0] = 0
    tensors["value"][0, 1, 3] = np.nan
    output, _, values = ours.run(None, tensors)
    np.testing.assert_array_equal(unpacked(values[0, :, 38]), np.zeros((2, 32), np.float32))
    assert np.isnan(unpacked(values[0, 0, 39])).all()
    assert np.isnan(output[0, 1]).any()


@needs_avx512_vnni
def test_a_cache_of_another_width_is_refused() -> None:
    """Nothing outside it is read or written."""
    tensors = feed(4, 2, 32, lengths=[50], sequence=5)
    wrong = {name: np.zeros((1, 2, 192, 32), np.int8) for name in _KEYS_AND_VALUES}
    with pytest.raises(Exception, match="Got: 32 Expected: 36"):
        int8(4, 2, 32).run(None, {**tensors, **wrong})
