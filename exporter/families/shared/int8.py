"""The INT8 graph: 8-bit weights with a scale for each output, 8-bit activations with a scale for each token.

ONNX Runtime's integer matmul takes one scale for all its activations. So each row is divided by its own largest
magnitude before it is rounded, on a grid that is always the same, and the result is multiplied by it: a token then
gives what it gives alone, whatever else is in the batch.

                 x
                 ├── Abs ── ReduceMax ── Max(·, tiny) ──┐
                Div ────────────────────────────────────┤
                 │                                      │
           QuantizeLinear(1/127, 128)                   │
                 │                                      │
        MatMulIntegerToFloat(weight, scales)            │
                 │                                      │
                Mul ────────────────────────────────────┘

Matmuls that read the same x (Q, K and V; gate and up) share everything above them.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
from torch import nn

from exporter.quantize import STEPS, pack_int8

from .wide import WideDecoder

_STEP = f"/model/constants/FLOAT/{1 / STEPS}"
_TINY = "/model/constants/FLOAT/1e-30"  # a row of zeros stays one


class Int8Decoder(WideDecoder):
    """The wide decoder, computing in 8 bits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rounded: dict[str, tuple[str, str]] = {}

    def make_matmul_op(self, matmul: nn.Linear, basename: str, root_input: str, **kwargs: Any) -> str:
        """Add the matmul of one linear layer, in 8 bits; returns the name of its last node."""
        packed = pack_int8(matmul.weight)
        stem = basename[1:].replace("/", ".")
        weight, scales, zero = f"{stem}.weight_int8", f"{stem}.scales", f"{stem}.zero_point"
        self.make_initializer(packed.weight, weight)
        self.make_initializer(packed.scales, scales)
        # Each has its own: made unsigned for want of VNNI (x64quantprecision), a shared one would be replaced twice.
        self.make_initializer(np.array(0, np.int8), zero)
        rows, largest = self._round(root_input)
        # Symmetric on both sides: the weights' zero point is 0, the activations', being unsigned, 128.
        inputs = [rows, weight, _STEP, scales, "/model/constants/UINT8/128", zero]
        shape = self.make_hidden_state_shape(kwargs.get("seq_dim", "sequence_length"), len(packed.scales))
        product = f"{basename}/Integer/output_0"
        self.make_node("MatMulIntegerToFloat", inputs, [product], name=f"{basename}/Integer", domain="com.microsoft")
        self.make_value(product, ir.DataType.FLOAT, shape)
        output = "logits" if kwargs.get("logits", False) else f"{basename}/output_0"
        self.make_node("Mul", [product, largest], [output], name=basename)
        self.make_value(output, ir.DataType.FLOAT, shape)
        return basename

    def _round(self, root_input: str) -> tuple[str, str]:
        """The rows of `root_input` as uint8, and the largest magnitude of each [batch, sequence, 1]; made once."""
        if root_input not in self._rounded:
            shape = self.values[root_input].shape
            one = [*shape[:-1], 1]
            stem = f"{root_input.removesuffix('/output_0')}/int8"
            largest = self._node("Abs", f"{stem}/Abs", [root_input], shape)
            largest = self._node("ReduceMax", f"{stem}/Max", [largest, "/model/constants/INT64/[-1]"], one, keepdims=1)
            largest = self._node("Max", f"{stem}/Floor", [largest, _TINY], one)
            unit = self._node("Div", f"{stem}/Div", [root_input, largest], shape)
            grid = [unit, _STEP, "/model/constants/UINT8/128"]
            rows = self._node("QuantizeLinear", f"{stem}/Round", grid, shape, dtype=ir.DataType.UINT8)
            self._rounded[root_input] = rows, largest
        return self._rounded[root_input]

    def _node(
        self,
        kind: str,
        name: str,
        inputs: list[str],
        shape: Any,
        *,
        dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: Any,
    ) -> str:
        """Add a node of one output and return the output's name."""
        output = f"{name}/output_0"
        self.make_node(kind, inputs, [output], name=name, **attributes)
        self.make_value(output, dtype, shape)
        return output
