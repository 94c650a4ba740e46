"""Changes a decoder graph so that one run computes a decode step and a prefill chunk.

An exported graph takes [batch, sequence], where several sequences with a past cannot be longer than one token. All its
operators except attention treat each token by itself. So in a mixed run all tokens form one sequence, those of the
decode step first; the weights are read once for all of them, and only attention separates the two:

    decode (one token each) ── GroupQueryAttention over adjacent slots of the KV cache ──┐
                                                                                       Concat
    chunk (any length) ─────── GroupQueryAttention over its own slot ────────────────────┘

A run of decode alone is computed as before, and so is a chunk alone, which always uses the second cache. Our own
attention operator, where it replaces ONNX Runtime's, does all of this itself: it gets both caches. Added inputs:

- `chunk_attention_mask` [chunks, total] and `chunk_past_key_values.*` [chunks, ..]: one chunk, or none;
- `logits_indices` [n]: the tokens whose logits are returned.

Added outputs: `chunk_present.*`. `logits` becomes [n, 1, vocabulary]. With a chunk, `inputs_embeds` is
[1, decode + chunk, width] and `position_ids` [axes, 1, decode + chunk], or without axes; there may be no decode tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from decoder_service.engine.onnx.operators import DOMAIN

CHUNK = "chunk_"
LOGITS_INDICES = "logits_indices"

_MASK = "attention_mask"
_OPERATOR = "GroupQueryAttention"
_OPERATORS = {_OPERATOR, f"{_OPERATOR}Int8"}
_LAST_POSITION = "/lm_head/prune/Gather"
_INPUTS_OF_ATTENTION = 7  # query, key, value, past keys, past values, lengths, longest; the others are unused
_ANSWERS, _HAS_ANSWERS, _HAS_CHUNK = "packed/answers", "packed/has_answers", "packed/has_chunk"
_CHUNK_LENGTHS, _CHUNK_LONGEST = "packed/chunk/lengths", "packed/chunk/longest"
_ZERO, _ONE, _END = "packed/zero", "packed/one", "packed/end"


def pack(graph: GraphProto) -> None:
    """Pack a decoder graph as the exporter writes it.

    Raises:
        ValueError: The graph has no attention operator that can be packed.
    """
    nodes: list[NodeProto] = []
    inputs: list[ValueInfoProto] = []
    outputs: list[ValueInfoProto] = []
    known = {value.name: value for value in (*graph.input, *graph.output)}
    for node in graph.node:
        if node.op_type not in _OPERATORS:
            nodes.append(node)
            continue
        if any(node.input[_INPUTS_OF_ATTENTION:]):
            raise ValueError(f"{node.name} has inputs that packing does not support: {list(node.input)}")
        if node.domain == DOMAIN:
            _give_chunk(node)
            nodes.append(node)
        else:
            nodes.append(_split(node))
        inputs += [_of_chunk(known[name]) for name in node.input[3:5]]
        outputs += [_of_chunk(known[name]) for name in node.output[1:3]]
    if not inputs:
        raise ValueError(f"the graph has no {_OPERATOR}")
    _pick_logits(nodes)
    read = {name for node in nodes for name in node.input}
    nodes = [node for node in nodes if node.op_type != "Constant" or node.output[0] in read]
    is_split = any(node.op_type == "If" for node in nodes)
    del graph.node[:], graph.value_info[:]  # the inner shapes are inferred again
    graph.node.extend([*_lengths(), *(_division() if is_split else ()), *nodes])
    constants = {_ONE: 1, **({_ZERO: 0, _END: np.iinfo(np.int64).max} if is_split else {})}
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    graph.input.extend(
        [
            helper.make_tensor_value_info(CHUNK + _MASK, TensorProto.INT64, ["chunks", "chunk_length"]),
            helper.make_tensor_value_info(LOGITS_INDICES, TensorProto.INT64, ["wanted"]),
            *inputs,
        ]
    )
    graph.output.extend(outputs)
    # In a mixed run the decode tokens share one sequence, and each has its own slot of the KV cache.
    for name, axis in (("inputs_embeds", -3), ("position_ids", -2)):
        known[name].type.tensor_type.shape.dim[axis].dim_param = "rows"
    wanted, one, _ = known["logits"].type.tensor_type.shape.dim
    wanted.dim_param, one.dim_value = "wanted", 1


def _lengths() -> list[NodeProto]:
    """The length of the chunk's slot including the chunk, in the operator's form."""
    mask = CHUNK + _MASK
    return [
        _node("ReduceSum", [mask, _ONE], "packed/chunk/ones", keepdims=1),
        _node("Sub", ["packed/chunk/ones", _ONE], "packed/chunk/last"),
        _node("Cast", ["packed/chunk/last"], _CHUNK_LENGTHS, to=TensorProto.INT32),
        _node("Shape", [mask], "packed/chunk/shape", start=1, end=2),
        _node("Cast", ["packed/chunk/shape"], _CHUNK_LONGEST, to=TensorProto.INT32),
    ]


def _division() -> list[NodeProto]:
    """The number of decode tokens, whether there are any, and whether there is a chunk."""
    return [
        _node("Shape", [_MASK], _ANSWERS, start=0, end=1),
        _node("Cast", [_ANSWERS], _HAS_ANSWERS, to=TensorProto.BOOL),
        _node("Shape", [CHUNK + _MASK], "packed/chunks", start=0, end=1),
        _node("Cast", ["packed/chunks"], _HAS_CHUNK, to=TensorProto.BOOL),
    ]


def _give_chunk(node: NodeProto) -> None:
    """Add the chunk's cache to the inputs of our operator."""
    past, present = _names_of_chunk(node)
    node.input.extend([*past, _CHUNK_LENGTHS, _CHUNK_LONGEST])
    node.output.extend(present)


def _names_of_chunk(node: NodeProto) -> tuple[list[str], list[str]]:
    """Past and present keys and values of the chunk."""
    return [CHUNK + name for name in node.input[3:5]], [CHUNK + name for name in node.output[1:3]]


def _split(node: NodeProto) -> NodeProto:
    """`node` in an unmixed run; in a mixed run one copy for decode and one for the chunk, with results concatenated."""
    alone, whole, beside = f"{node.name}/decode_alone", f"{node.name}/chunk_alone", f"{node.name}/beside"
    past, present = _names_of_chunk(node)
    no_chunk, no_decode = _as_they_are(past, alone), _as_they_are(node.input[3:5], whole)
    only_decode = [_operator(node, node.input, alone), *no_chunk]
    of_prompt = [*node.input[:3], *past, _CHUNK_LENGTHS, _CHUNK_LONGEST]
    only_chunk = [_operator(node, of_prompt, whole), *no_decode]
    output, *of_whole = _outputs(whole)
    outputs_alone = [*_outputs(alone), *(held.output[0] for held in no_chunk)]
    outputs_whole = [output, *(held.output[0] for held in no_decode), *of_whole]
    answers, chunk = f"{beside}/answers", f"{beside}/chunk"
    split = []
    for kind, source in zip(("query", "key", "value"), node.input[:3], strict=True):
        split += [
            _node("Slice", [source, _ZERO, _ANSWERS, _ONE], f"{answers}/{kind}/row"),
            _node("Transpose", [f"{answers}/{kind}/row"], f"{answers}/{kind}", perm=[1, 0, 2]),
            _node("Slice", [source, _ANSWERS, _END, _ONE], f"{chunk}/{kind}"),
        ]
    of_answers = [*(f"{answers}/{kind}" for kind in ("query", "key", "value")), *node.input[3:7]]
    of_chunk = [*(f"{chunk}/{kind}" for kind in ("query", "key", "value")), *past, _CHUNK_LENGTHS, _CHUNK_LONGEST]
    both = [
        *split,
        _operator(node, of_answers, answers),
        _operator(node, of_chunk, chunk),
        _node("Transpose", [f"{answers}/output"], f"{answers}/output/row", perm=[1, 0, 2]),
        _node("Concat", [f"{answers}/output/row", f"{chunk}/output"], beside, axis=1),
    ]
    outputs_beside = [beside, *_outputs(answers)[1:], *_outputs(chunk)[1:]]
    with_chunk = [f"{node.name}/with_chunk/{index}" for index in range(len(outputs_beside))]
    inner = helper.make_node(
        "If",
        [_HAS_ANSWERS],
        with_chunk,
        name=f"{node.name}/with_chunk/If",
        then_branch=_branch(beside, both, outputs_beside),
        else_branch=_branch(whole, only_chunk, outputs_whole),
    )
    return helper.make_node(
        "If",
        [_HAS_CHUNK],
        [*node.output, *present],
        name=f"{node.name}/If",
        then_branch=_branch(f"{node.name}/with_chunk", [inner], with_chunk),
        else_branch=_branch(alone, only_decode, outputs_alone),
    )


def _as_they_are(caches: Sequence[str], stem: str) -> list[NodeProto]:
    """Pass on caches without slots."""
    return [_node("Identity", [held], f"{stem}/unused_{index}") for index, held in enumerate(caches)]


def _operator(node: NodeProto, inputs: Sequence[str], stem: str) -> NodeProto:
    """A copy of the node with other inputs."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    name = f"{stem}/{_OPERATOR}"
    return helper.make_node(_OPERATOR, inputs, _outputs(stem), name=name, domain=node.domain, **attributes)


def _outputs(stem: str) -> list[str]:
    return [f"{stem}/output", f"{stem}/keys", f"{stem}/values"]


def _branch(name: str, nodes: Sequence[NodeProto], outputs: Sequence[str]) -> GraphProto:
    return helper.make_graph(nodes, name, [], [ValueInfoProto(name=output) for output in outputs])


def _pick_logits(nodes: list[NodeProto]) -> None:
    """Return the logits of `logits_indices`; the graph returns those of the last position, or of all."""
    for index, node in enumerate(nodes):
        if node.name == _LAST_POSITION:
            unsqueeze = next(n for n in nodes if node.output[0] in n.input)
            nodes[index : index + 1] = _gathered(node.input[0], unsqueeze.output[0])
            nodes.remove(unsqueeze)
            return
    last = next(node for node in nodes if "logits" in node.output)
    last.output[list(last.output).index("logits")] = "packed/all_logits"
    nodes += _gathered("packed/all_logits", "logits")


def _gathered(source: str, output: str) -> list[NodeProto]:
    """Rows [n, 1, width] of [batch, sequence, width]."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [3], [-1, 1, 0])
    return [
        helper.make_node("Constant", [], ["packed/token_rows/shape"], name="packed/token_rows/shape", value=shape),
        _node("Reshape", [source, "packed/token_rows/shape"], "packed/token_rows"),
        _node("Gather", ["packed/token_rows", LOGITS_INDICES], output, axis=0),
    ]


def _node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs, [output], name=f"{output}/{kind}", **attributes)


def _of_chunk(value: ValueInfoProto) -> ValueInfoProto:
    """The same input or output for the chunk, which has its own slot."""
    shape: list[int | str] = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
    shape[0], shape[2] = "chunks", f"chunk_{shape[2]}"
    return helper.make_tensor_value_info(CHUNK + value.name, value.type.tensor_type.elem_type, shape)
