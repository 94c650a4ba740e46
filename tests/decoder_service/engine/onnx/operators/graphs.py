"""Graphs of one operator, as ONNX Runtime computes them and as ours does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from decoder_service.engine.onnx import operators
from serving.cores import cpu_flags

Tensors = Mapping[str, NDArray[Any]]

needs_avx512_vnni = pytest.mark.skipif("avx512_vnni" not in cpu_flags(), reason="this processor has no AVX-512 VNNI")


def model_of(
    nodes: list[NodeProto], inputs: list[ValueInfoProto], outputs: list[ValueInfoProto], constants: Tensors
) -> ModelProto:
    """A graph of ONNX Runtime's operators."""
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(
        helper.make_graph(nodes, "one", inputs, outputs, initializers), opset_imports=opsets, ir_version=10
    )


def session(model: ModelProto, *, threads: int = 1) -> ort.InferenceSession:
    """A graph as it is, or with our operators where they are substituted."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if any(node.domain == operators.DOMAIN for node in model.graph.node):
        options.register_custom_ops_library(str(operators.library()))
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def both(
    model: ModelProto, *, head_size: int = 32, kv_dtype: operators.KvDtype = "float16"
) -> tuple[ort.InferenceSession, ort.InferenceSession]:
    """ONNX Runtime's operator and ours."""
    theirs = session(model)
    assert operators.substitute(model, head_size=head_size, kv_dtype=kv_dtype) == 1
    return theirs, session(model)
