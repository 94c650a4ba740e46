"""A builder's model with a low-rank adapter for some of the tokens of a run: y = W x + B (A x) for those.

    x ──────────────────────────── MatMul(W) ── ScatterND(add) ── y
    └─ GatherND(adapter_tokens) ── MatMul(A) ── MatMul(B) ──┘

The rows of these tokens are gathered, multiplied by A and B, and added to what the matrix gives. Without any, nothing
is multiplied; a row that is not among them is not touched, so that it has the same bits whatever is beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch
from onnxruntime_genai.models.builders.base import Model
from torch import nn
from torch.nn import functional

from decoder_service.engine.model import ADAPTER_TOKENS
from exporter.precision import Phase, Precision
from exporter.recipe import Kind

from .adapter import ADAPTER, UP, adapters
from .checkpoint import Checkpoint
from .nodes import matrices

_ADAPTED = "num_adapter_tokens"


class AdaptedDecoder(Model):  # type: ignore[misc] # the builder has no types
    """A builder's text model whose layers may have adapters, see `adapter`."""

    _checkpoint: Checkpoint
    _graph: Precision | Phase

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._adapters: Mapping[Kind, tuple[str, nn.Linear]] = {}
        self._products: dict[str, str] = {}  # of A, by its name
        super().__init__(*args, **kwargs)

    def make_inputs_and_outputs(self) -> None:
        """Declare the input with the tokens."""
        if self._checkpoint.has_adapter:
            self.input_names[ADAPTER_TOKENS] = ADAPTER_TOKENS
            self.input_types[ADAPTER_TOKENS] = ir.DataType.INT64
            self.input_shapes[ADAPTER_TOKENS] = [1, _ADAPTED, 2]
        super().make_inputs_and_outputs()

    def make_layer(self, layer_id: int, layer: nn.Module) -> None:
        """Add one layer."""
        self._adapters = adapters(layer)
        super().make_layer(layer_id, layer)

    def make_matmul(self, matmul: nn.Linear, basename: str, root_input: str, **kwargs: Any) -> str:
        """Add the matmul of one linear layer, with its adapter's; returns the name of the last node."""
        name = str(super().make_matmul(matmul, basename, root_input, **kwargs))
        up = getattr(matmul, UP, None)
        if up is None:
            return name
        (kind,), _, _ = matrices(basename)
        group, down = self._adapters[kind]
        stem = basename.removesuffix("/MatMul")
        rank = len(down.weight)
        more = -rank % self.quant_attrs["matmul_block_size"] if self._graph == "int4" else 0  # our operators want that
        rows = self._adapter_rows(f"{stem.rpartition('/')[0]}/{group}{ADAPTER}", down, root_input, more)
        added = self._adapter_matmul(functional.pad(up, (0, more)), f"{stem}/adapter/MatMul", rows)
        summed = f"{stem}/adapter/Add"
        output, shape = f"{summed}/output_0", self.values[f"{name}/output_0"].shape
        inputs = [f"{name}/output_0", ADAPTER_TOKENS, added]
        self.make_node("ScatterND", inputs, [output], name=summed, reduction="add")
        self.make_value(output, self.io_dtype, shape)
        return summed

    def _adapter_rows(self, name: str, down: nn.Linear, root_input: str, more: int) -> str:
        """A, with `more` rows of zeros, times the rows of the tokens that use it; made once for all that share it."""
        output = f"{name}/rows/GatherND/output_0"
        if output not in self.values:
            self.make_node("GatherND", [root_input, ADAPTER_TOKENS], [output], name=f"{name}/rows/GatherND")
            self.make_value(output, self.io_dtype, [1, _ADAPTED, down.in_features])
            self._products[name] = self._adapter_matmul(
                functional.pad(down.weight, (0, 0, 0, more)), f"{name}/MatMul", output
            )
        return self._products[name]

    def _adapter_matmul(self, weight: torch.Tensor, basename: str, root_input: str) -> str:
        """Add the matmul with A or B, and return its output's name."""
        with torch.device("meta"):
            matmul = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        matmul.weight = nn.Parameter(weight, requires_grad=False)
        output = f"{self.make_matmul_op(matmul, basename, root_input)}/output_0"
        self.make_value(output, self.io_dtype, [1, _ADAPTED, weight.shape[0]])
        return output
