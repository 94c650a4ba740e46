"""Our attention computes what ONNX Runtime's does, and takes only the nodes of which that is so."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from decoder_service.engine.onnx import operators
from tests.decoder_service.engine.onnx.operators.graphs import both, model_of, needs_avx512_vnni, session

_INPUTS = ("query", "key", "value", "past_key", "past_value", "seqlens_k", "total")
_OUTPUTS = ("output", "present_key", "present_value")


def one_attention(heads: int, kv_heads: int, width: int, **attributes: Any) -> ModelProto:
    """A graph of one attention over a cache."""
    given = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": width**-0.5, "local_window_size": -1, **attributes}
    cos = ["cos", "sin"] if attributes.get("do_rotary") else []
    node = helper.make_node("GroupQueryAttention", [*_INPUTS, *cos], _OUTPUTS, domain="com.microsoft", **given)

    def value(name: str, kind: int, *shape: int | str) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    def cache(name: str) -> Any:
        return value(name, TensorProto.FLOAT, "batch", kv_heads, f"{name}_capacity", width)

    inputs = [
        value("query", TensorProto.FLOAT, "batch", "sequence", heads * width),
        value("key", TensorProto.FLOAT, "batch", "sequence", kv_heads * width),
        value("value", TensorProto.FLOAT, "batch", "sequence", kv_heads * width),
        *(cache(name) for name in ("past_key", "past_value")),
        value("seqlens_k", TensorProto.INT32, "batch"),
        value("total", TensorProto.INT32, 1),
    ]
    outputs = [
        value("output", TensorProto.FLOAT, "batch", "sequence", heads * width),
        *(cache(name) for name in ("present_key", "present_value")),
    ]
    constants = {name: np.ones((64, width // 2), np.float32) for name in cos}
    return model_of([node], inputs, outputs, constants)


def feed(
    heads: int, kv_heads: int, width: int, *, lengths: list[int], sequence: int = 1, capacity: int = 192
) -> dict[str, NDArray[Any]]:
    """Random inputs, for rows that have so many keys when the new ones are there.

    Keys and values are such as float16 can hold, so that ours, which keeps them so, is given the same.
    """
    rng = np.random.default_rng(sum(lengths) + sequence + width)
    batch = len(lengths)

    def normal(*shape: int) -> NDArray[np.float32]:
        return (2 * rng.normal(size=shape)).astype(np.float16).astype(np.float32)

    return {
        "query": normal(batch, sequence, heads * width),
        "key": normal(batch, sequence, kv_heads * width),
        "value": normal(batch, sequence, kv_heads * width),
        "past_key": normal(batch, kv_heads, capacity, width),
        "past_value": normal(batch, kv_heads, capacity, width),
        "seqlens_k": np.array(lengths, np.int32) - 1,
        "total": np.array([max(lengths)], np.int32),
    }


def run(used: ort.InferenceSession, tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """What it gives."""
    return dict(zip(_OUTPUTS, used.run(list(_OUTPUTS), as_it_takes(used, tensors)), strict=True))


def as_it_takes(used: ort.InferenceSession, tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The inputs, of the types that it takes."""
    halved = {value.name for value in used.get_inputs() if value.type == "tensor(float16)"}
    return {name: value.astype(np.float16) if name in halved else value for name, value in tensors.items()}


@needs_avx512_vnni
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"), [(4, 2, 16), (6, 2, 32), (4, 4, 128), (9, 1, 80), (32, 1, 256)]
)
def test_it_computes_what_onnx_runtime_does(heads: int, kv_heads: int, width: int) -> None:
    """A token of each of several rows, a first prompt, a chunk behind others, and one that fills the cache."""
    theirs, ours = both(one_attention(heads, kv_heads, width), head_size=width)
    cases = [
        {"lengths": [1]},
        {"lengths": [65, 1, 192, 33, 32]},
        {"lengths": [1], "sequence": 1},
        {"lengths": [70], "sequence": 70},
        {"lengths": [100], "sequence": 37},
        {"lengths": [192], "sequence": 100},
        {"lengths": [34], "sequence": 2},
    ]
    for case in cases:
        tensors = feed(heads, kv_heads, width, **case)  # type: ignore[arg-type]
        expected, given = run(theirs, tensors), run(ours, tensors)
        for row, length in enumerate(case["lengths"]):  # type: ignore[arg-type]
            np.testing.assert_allclose(given["output"][row], expected["output"][row], atol=5e-5)
            for name in ("present_key", "present_value"):
                np.testing.assert_array_equal(given[name][row, :, :length], expected[name][row, :, :length])
        # Negative control: a key fewer is felt.
        if min(case["lengths"]) > case.get("sequence", 1):  # type: ignore[operator, type-var, arg-type]
            short = {**tensors, "seqlens_k": tensors["seqlens_k"] - 1, "total": tensors["total"] - 1}
            assert np.abs(run(ours, short)["output"] - expected["output"]).max() > 1e-2


@needs_avx512_vnni
def test_a_row_is_what_it_is_alone() -> None:
    """To the last bit, whatever else is in the batch and however many threads compute it."""
    model = one_attention(6, 2, 32)
    _, ours = both(model)
    tensors = feed(6, 2, 32, lengths=[65, 7, 192, 33])
    together = run(ours, tensors)["output"]
    np.testing.assert_array_equal(run(session(model, threads=2), tensors)["output"], together)
    for row in range(4):
        alone = {name: value if name == "total" else value[row : row + 1] for name, value in tensors.items()}
        np.testing.assert_array_equal(run(ours, alone)["output"][0], together[row])


@needs_avx512_vnni
def test_scores_far_apart_and_all_alike() -> None:
    """The softmax neither overflows nor loses what is left: one key alone, or all of them, decide."""
    theirs, ours = both(one_attention(4, 2, 32))
    for factor in (0.0, 1e-3, 30.0, 1e4):
        tensors = feed(4, 2, 32, lengths=[150], sequence=40)
        tensors["query"] = tensors["query"] * np.float32(factor)
        np.testing.assert_allclose(run(ours, tensors)["output"], run(theirs, tensors)["output"], atol=1e-4)


@needs_avx512_vnni
def test_what_float16_cannot_hold_is_held_as_near_as_it_can() -> None:
    """It does not become infinite; and what is no number is still none."""
    _, ours = both(one_attention(4, 2, 32))
    tensors = feed(4, 2, 32, lengths=[40], sequence=2)
    tensors["value"][0, 1, :3] = 1e6, -1e6, np.nan
    given = run(ours, tensors)
    np.testing.assert_array_equal(given["present_value"][0, 0, 39, :3], np.array([65504, -65504, np.nan], np.float16))
    assert np.isnan(given["output"][0, 1]).any()
    assert np.isfinite(given["present_value"][0, 0, 39, 3:]).all()


@needs_avx512_vnni
def test_the_cache_is_written_in_place() -> None:
    """Where past and present are the same memory, only the new tokens' places change."""
    _, ours = both(one_attention(4, 2, 32))
    tensors = feed(4, 2, 32, lengths=[50], sequence=20)
    expected = run(ours, tensors)
    held = {name: tensors[name].astype(np.float16) for name in ("past_key", "past_value")}
    binding = ours.io_binding()
    for name, value in {**tensors, **held}.items():
        binding.bind_input(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
    output = np.empty_like(tensors["query"])
    bound = {"output": output, "present_key": held["past_key"], "present_value": held["past_value"]}
    for name, value in bound.items():
        binding.bind_output(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
    ours.run_with_iobinding(binding)
    np.testing.assert_array_equal(output, expected["output"])
    for past, present in (("past_key", "present_key"), ("past_value", "present_value")):
        np.testing.assert_array_equal(held[past][:, :, :50], expected[present][:, :, :50])
        np.testing.assert_array_equal(held[past][:, :, 50:], tensors[past][:, :, 50:])


_CHUNK_INPUTS = ("chunk_key", "chunk_value", "chunk_seqlens", "chunk_total")
_CHUNK_OUTPUTS = ("chunk_present_key", "chunk_present_value")


def attention_beside_a_chunk(kv_dtype: operators.KvDtype = "float16") -> ort.InferenceSession:
    """Our operator with a cache for a chunk: 6 heads of 32 over 2."""
    model = one_attention(6, 2, 32)
    assert operators.substitute(model, head_size=32, kv_dtype=kv_dtype) == 1
    (node,) = model.graph.node
    for name, like in zip(_CHUNK_INPUTS, _INPUTS[3:], strict=True):
        known = next(value for value in model.graph.input if value.name == like)
        model.graph.input.append(helper.make_tensor_value_info(name, known.type.tensor_type.elem_type, None))
    present = model.graph.output[-1]
    for name in _CHUNK_OUTPUTS:
        model.graph.output.append(helper.make_tensor_value_info(name, present.type.tensor_type.elem_type, None))
    node.input.extend(_CHUNK_INPUTS)
    node.output.extend(_CHUNK_OUTPUTS)
    return session(model)


def side_by_side(answers: dict[str, NDArray[Any]], chunk: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The inputs of both in one run."""
    fresh = {
        name: np.concatenate([answers[name].reshape(1, -1, answers[name].shape[-1]), chunk[name]], 1)
        for name in _INPUTS[:3]
    }
    return {**answers, **fresh, **dict(zip(_CHUNK_INPUTS, (chunk[name] for name in _INPUTS[3:]), strict=True))}


@needs_avx512_vnni
def test_a_chunk_beside_answers_is_what_it_is_alone() -> None:
    """And so are the answers, to the last bit; without a chunk nothing but the answers is computed."""
    _, alone = both(one_attention(6, 2, 32))
    beside = attention_beside_a_chunk()
    answers, chunk = feed(6, 2, 32, lengths=[65, 7, 192]), feed(6, 2, 32, lengths=[90], sequence=41)
    expected = run(alone, answers)

    def beside_a_chunk(answers: dict[str, NDArray[Any]]) -> dict[str, Any]:
        given = beside.run(None, as_it_takes(beside, side_by_side(answers, chunk)))
        return dict(zip([*_OUTPUTS, *_CHUNK_OUTPUTS], given, strict=True))

    given = beside_a_chunk(answers)
    of_chunk = beside_a_chunk({name: value if name == "total" else value[:0] for name, value in answers.items()})
    np.testing.assert_array_equal(given["output"][0, :3], expected["output"][:, 0])
    np.testing.assert_array_equal(given["output"][:, 3:], of_chunk["output"])
    np.testing.assert_allclose(of_chunk["output"], run(alone, chunk)["output"], atol=1e-5)
    for name in ("present_key", "present_value"):
        for row, length in enumerate((65, 7, 192)):
            np.testing.assert_array_equal(given[name][row, :, :length], expected[name][row, :, :length])
        np.testing.assert_array_equal(given[f"chunk_{name}"][0, :, :90], of_chunk[f"chunk_{name}"][0, :, :90])
    none = dict(
        zip(_CHUNK_INPUTS, (chunk["past_key"][:0],) * 2 + (chunk["seqlens_k"][:0], chunk["total"]), strict=True)
    )
    np.testing.assert_array_equal(
        beside.run(["output"], as_it_takes(beside, {**answers, **none}))[0], expected["output"]
    )


@needs_avx512_vnni
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"chunk_seqlens": np.array([40], np.int32) - 1}, "does not fit the cache"),
        ({"chunk_seqlens": np.array([193], np.int32) - 1}, "does not fit the cache"),
        ({name: np.zeros((1, 2, 192, 48), np.float32) for name in _CHUNK_INPUTS[:2]}, "do not belong together"),
        (
            {name: np.zeros((1, 2, 192, 32), np.float32) for name in _CHUNK_INPUTS[:1]}
            | {"chunk_value": np.zeros((1, 2, 96, 32), np.float32)},
            "do not belong together",
        ),
        (
            {name: np.zeros((1, 3, size), np.float32) for name, size in zip(_INPUTS, (192, 64, 64), strict=False)},
            "do not belong together",
        ),
        (
            {name: np.zeros((2, 2, 192, 32), np.float32) for name in _CHUNK_INPUTS[:2]}
            | {"chunk_seqlens": np.array([89, 89], np.int32)},
            "do not belong together",
        ),
    ],
    ids=["fewer than are new", "past the end", "other heads", "halves", "answers alone", "two chunks"],
)
def test_a_chunk_that_does_not_fit_is_said(changed: dict[str, NDArray[Any]], message: str) -> None:
    """As without one."""
    tensors = side_by_side(feed(6, 2, 32, lengths=[65, 7, 192]), feed(6, 2, 32, lengths=[90], sequence=41))
    beside = attention_beside_a_chunk()
    changed_tensors = as_it_takes(beside, {**tensors, **changed})
    with pytest.raises(Exception, match=message):
        beside.run(["output"], changed_tensors)


@needs_avx512_vnni
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seqlens_k": np.array([192], np.int32)}, "does not fit the cache"),
        ({"seqlens_k": np.array([3], np.int32)}, "does not fit the cache"),
        ({"key": np.zeros((1, 4, 64), np.float32)}, "do not belong together"),
        ({"past_key": np.zeros((2, 2, 192, 32), np.float32)}, "do not belong together"),
    ],
    ids=["past the end", "fewer than are new", "keys missing", "rows too many"],
)
def test_what_does_not_fit_is_said(changed: dict[str, NDArray[Any]], message: str) -> None:
    """Nothing outside the cache is read or written."""
    _, ours = both(one_attention(4, 2, 32))
    tensors = feed(4, 2, 32, lengths=[50], sequence=5)
    with pytest.raises(Exception, match=message):
        run(ours, {**tensors, **changed, **({"past_value": changed["past_key"]} if "past_key" in changed else {})})


@pytest.mark.parametrize(
    ("other", "head_size"),
    [
        (one_attention(4, 2, 24), 24),
        (one_attention(4, 2, 272), 272),
        (one_attention(33, 1, 32), 32),
        (one_attention(4, 2, 32, local_window_size=16), 32),
        (one_attention(4, 2, 32, softcap=30.0), 32),
        (one_attention(4, 2, 32, smooth_softmax=1), 32),
        (one_attention(4, 2, 32, do_rotary=1), 32),
        (one_attention(4, 2, 32, scale=0.0), 32),
    ],
    ids=["odd width", "too wide", "a large group", "a window", "a cap", "a sink", "rotation", "a scale not told"],
)
def test_it_takes_nothing_that_it_computes_otherwise(other: ModelProto, head_size: int) -> None:
    """What is not the very same attention stays ONNX Runtime's."""
    before = other.SerializeToString()
    assert operators.substitute(other, head_size=head_size) == 0
    assert other.SerializeToString() == before
