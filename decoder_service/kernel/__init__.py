"""Our own 4-bit matmul, for x86 processors with AVX-512 VNNI: whether it can be used, and how a graph comes to use it.

`matmul_nbits.cc` says what it computes and how; `hatch_build.py`, beside pyproject.toml, compiles it.
"""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto, NodeProto, helper

from serving.cores import cpu_flags

DOMAIN = "triptych"
_LIBRARY = Path(__file__).with_name("matmul_nbits.so")
_OPERATOR = "MatMulNBits"
# What the compiler was told that it may use.
_FLAGS = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni", "avx2", "bmi2", "f16c", "fma"}


def library() -> Path | None:
    """The compiled operator, where it was compiled and this processor can run it."""
    return _LIBRARY if _LIBRARY.exists() and cpu_flags() >= _FLAGS else None


def substitute(model: ModelProto) -> int:
    """Let our operator take the place of ONNX Runtime's wherever it computes the same.

    Returns:
        How many nodes it took.
    """
    taken = [node for node in model.graph.node if _computes(node)]
    for node in taken:
        node.domain = DOMAIN
        del node.attribute[:]  # the shapes of its constants say it all
    if taken:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return len(taken)


def _computes(node: NodeProto) -> bool:
    """Whether it is a matmul of 4 bits in blocks of whole registers, without zero points, an order or a bias."""
    if node.op_type != _OPERATOR or node.domain != "com.microsoft" or any(node.input[3:]):
        return False
    known = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    size = known["block_size"]
    return bool(
        known.get("bits", 4) == 4 and known.get("accuracy_level", 0) == 4 and size % 32 == 0 and known["K"] % size == 0
    )
