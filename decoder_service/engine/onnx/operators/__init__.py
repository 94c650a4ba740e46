"""Our own operators for x86 processors with AVX-512 VNNI: detection, and their substitution in graphs.

Each `.cc` file describes its operator; `hatch_build.py`, next to pyproject.toml, compiles them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from onnx import ModelProto, NodeProto, TensorProto, helper

from serving.cores import cpu_flags

DOMAIN = "triptych"

KvDtype = Literal["float16", "int8"]
"""How our attention stores keys and values."""
_LIBRARY = Path(__file__).with_name("operators.so")
# The instruction sets that the compiler may use.
_FLAGS = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni", "avx2", "bmi2", "f16c", "fma"}

_BITS = (4, 8)
_LANES = 16  # float32 values in a register
_WIDEST_HEAD = 256
_LARGEST_GROUP = 32
_SCALE_BYTES = 4  # behind the int8 numbers of a row
_ATTENTION_INPUTS = 7  # query, key, value, past keys, past values, lengths, longest
_ROUNDED_MATMULS = {"MatMulNBits", "MatMulIntegerToFloat"}
# The nodes with which the exporter rounds rows in INT8 graphs, from the last to the first.
_ROUNDING = ("QuantizeLinear", "Div", "Max", "ReduceMax", "Abs")


def library() -> Path | None:
    """Path of the compiled operators; None if they were not compiled or this processor cannot run them."""
    return _LIBRARY if _LIBRARY.exists() and cpu_flags() >= _FLAGS else None


def is_rounded(model: ModelProto) -> bool:
    """Whether a graph's weights are quantized. A float32 graph is the reference, and keeps its operators."""
    return any(node.op_type in _ROUNDED_MATMULS for node in model.graph.node)


def multiplies_all(model: ModelProto) -> bool:
    """Whether our operators do all multiplications by quantized weights, on threads of their own (`pool.h`).

    ONNX Runtime's threads then have little to do, and would spin on the cores that ours need.
    """
    return all(node.domain == DOMAIN for node in model.graph.node if node.op_type in _ROUNDED_MATMULS)


def substitute(model: ModelProto, *, head_size: int, threads: int = 1, kv_dtype: KvDtype = "int8") -> int:
    """Replace ONNX Runtime's operators by ours wherever they compute the same, except for rounding.

    With our attention, a graph's keys and values are float16 or int8, including its inputs and outputs. int8 rows are
    four elements longer than a head is wide: they end with their scale.

    Args:
        model: A decoder graph, changed in place.
        head_size: Width of an attention head.
        threads: Threads per operator.
        kv_dtype: How our attention stores keys and values.

    Returns:
        Number of replaced nodes.
    """
    taken = _round_rows(model)
    matmuls = [node for node in model.graph.node if node.op_type == "MatMulNBits" and _is_our_matmul(node)]
    for node in matmuls:
        _take(node, threads=threads, bits=_attributes(node).get("bits", 4))
    # Without our matmuls, attention uses ONNX Runtime's threads (0), as the operators around it do.
    threads = threads if matmuls else 0
    stored: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention" and _is_our_attention(node, head_size):
            _take(node, "num_heads", "kv_num_heads", "scale", threads=threads)
            if kv_dtype == "int8":
                node.op_type += "Int8"
            stored.update((*node.input[3:5], *node.output[1:3]))
            taken += 1
    taken += len(matmuls)
    if taken:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.name in stored and kv_dtype == "int8":
            value.type.tensor_type.elem_type = TensorProto.INT8
            value.type.tensor_type.shape.dim[-1].dim_value = head_size + _SCALE_BYTES
        elif value.name in stored:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return taken


def _take(node: NodeProto, *attributes: str, **given: int) -> None:
    """Replace the operator of a node; it keeps these attributes and gets others."""
    node.domain = DOMAIN
    kept = [attribute for attribute in node.attribute if attribute.name in attributes]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in given.items())])
    while node.input and not node.input[-1]:
        node.input.pop()


def _is_our_matmul(node: NodeProto) -> bool:
    """Whether it is a 4- or 8-bit matmul in blocks of whole registers, without zero points, group index or bias."""
    if node.domain != "com.microsoft":
        return False
    known = _attributes(node)
    size = known["block_size"]
    return bool(
        known.get("bits", 4) in _BITS
        and known.get("accuracy_level", 0) == 4
        and size % 32 == 0
        and known["K"] % size == 0
        and not any(node.input[3:])
    )


def _is_our_attention(node: NodeProto, head_size: int) -> bool:
    """Whether it is plain causal attention in float32, of heads that fill whole registers."""
    if node.domain != "com.microsoft":
        return False
    known = _attributes(node)
    plain = {"do_rotary": 0, "local_window_size": -1, "softcap": 0.0, "smooth_softmax": 0, "qk_output": 0}
    used = {name for name, value in known.items() if name not in plain or value != plain[name]}
    return bool(
        used <= {"num_heads", "kv_num_heads", "scale", "rotary_interleaved"}
        and known.get("scale", 0) > 0
        and known["num_heads"] <= _LARGEST_GROUP * known["kv_num_heads"]
        and head_size % _LANES == 0
        and head_size <= _WIDEST_HEAD
        and not any(node.input[_ATTENTION_INPUTS:])
        and len(node.output) == 3
    )


def _round_rows(model: ModelProto) -> int:
    """Replace the five nodes with which the exporter rounds rows to 8 bits by one of our operators."""
    nodes = {node.output[0]: node for node in model.graph.node}
    rounded = 0
    for last in [node for node in nodes.values() if node.name.endswith("/int8/Round")]:
        division = nodes[last.input[0]]
        floor = nodes[division.input[1]]
        largest = nodes[floor.input[0]]
        chain = [last, division, floor, largest, nodes[largest.input[0]]]
        first = chain[-1]
        if tuple(node.op_type for node in chain) != _ROUNDING or first.input[0] != division.input[0]:
            continue
        ours = helper.make_node(
            "RoundRows",
            [first.input[0]],
            [last.output[0], floor.output[0]],
            name=last.name,
            domain=DOMAIN,
        )
        model.graph.node.insert(list(model.graph.node).index(first), ours)
        for node in chain:
            model.graph.node.remove(node)
        rounded += 1
    return rounded


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
