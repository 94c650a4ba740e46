"""The decoder as a graph: onnxruntime-genai's Qwen3-VL builder, widened for DeepStack and made to stream.

The builder is a class made for subclassing, so nothing of it is patched. What is overridden, and why:

- `make_layer`, and the input's shape, carry the DeepStack features. `inputs_embeds` is
  [batch, sequence, (1 + L) · hidden]; the first chunk enters the network and chunk i + 1 is added to the residual
  stream after layer i. Text positions hold zeros there, so that a decode step needs nothing special.
- `make_rope_init` keeps M-RoPE where there is YaRN, for which the builder would drop it; the tables of cosines and
  sines are transformers' own, so that all of YaRN's options count.
- `load_weights` hands out one layer at a time, `make_matmul_nbits` quantizes a weight when its node is made, and
  `make_initializer` writes each tensor to disk at once. The builder itself holds the whole float32 decoder until the
  end: 13.7 GB for the 2B model, where this way the 4B takes 2 GB.
"""

import importlib.metadata
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, TypeVar

import onnx_ir as ir
import torch
from onnxruntime_genai.models.builders.qwen import Qwen3VLTextModel
from torch import nn
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextRMSNorm,
    Qwen3VLTextRotaryEmbedding,
)

from exporter.progress import Advance
from exporter.quantize import pack_int4
from exporter.spool import Spool

from .checkpoint import TEXT_PREFIX, Checkpoint
from .genai import complete_genai_config
from .smoothing import column_factors, divide_columns, scale_outputs, smooth_layer

_Module = TypeVar("_Module", bound=nn.Module)

_ROWS = 16_384  # of the output head, looked at together


class WideDecoder(Qwen3VLTextModel):  # type: ignore[misc] # the builder has no types
    """The builder's Qwen3-VL text model with wide embeddings.

    Args:
        config: the model's; the builder writes into it.
        weight_type: the type of weights, for the builder: INT4 or FLOAT.
        options: the builder's own.
        checkpoint: where the weights come from.
        spool: where they go.
        smooth: even out outlier channels, which changes nothing before rounding.
        advance: called after each layer, and after the output head.
    """

    def __init__(
        self,
        config: Qwen3VLConfig,
        weight_type: ir.DataType,
        options: dict[str, Any],
        *,
        checkpoint: Checkpoint,
        spool: Spool,
        smooth: bool,
        advance: Advance,
    ) -> None:
        self._smooth = smooth
        self._checkpoint = checkpoint
        self._spool = spool
        self._advance = advance
        self._levels = checkpoint.deepstack_levels
        super().__init__(config, ir.DataType.FLOAT, weight_type, "cpu", "", options)

    # DeepStack

    def make_inputs_and_outputs(self) -> None:
        """Declare the embeddings wide."""
        self.input_shapes["inputs_embeds"] = ["batch_size", "sequence_length", self._checkpoint.feature_width]
        super().make_inputs_and_outputs()

    def make_layer(self, layer_id: int, layer: nn.Module) -> None:
        """Add one layer, and the feature map that follows it."""
        shape = ["batch_size", "sequence_length", self.hidden_size]
        if layer_id == 0 and self._levels:
            chunks = [_chunk(i) for i in range(1 + self._levels)]
            self.make_split(
                "/model/deepstack/Split",
                inputs=["inputs_embeds"],
                outputs=chunks,
                dtypes=[self.io_dtype] * len(chunks),
                shapes=[shape] * len(chunks),
                axis=-1,
                num_outputs=len(chunks),
            )
            self.layernorm_attrs["root_input"] = self.layernorm_attrs["skip_input"] = chunks[0]
        super().make_layer(layer_id, layer)
        if layer_id < self._levels:
            # What the layer leaves as "skip" is its MLP's output, to be added to the residual by the next norm.
            name = f"/model/layers.{layer_id}/deepstack/Add"
            self.make_add(name, [self.layernorm_attrs["skip_input"], _chunk(1 + layer_id)], self.io_dtype, shape)
            self.layernorm_attrs["skip_input"] = f"{name}/output_0"
        self._advance(1)

    # Positions

    def make_rope_init(self, config: Qwen3VLConfig) -> None:
        """Select M-RoPE."""
        self.rope_attrs["op_type"] = "MRotaryEmbedding"
        self.rope_attrs["mrope_section"] = self._checkpoint.mrope_section

    def make_rotary_embedding_caches_from_scratch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cosines and sines of every position, [positions, width of half a head]."""
        rotary = Qwen3VLTextRotaryEmbedding(self._checkpoint.text)
        angles = torch.outer(torch.arange(self.rope_attrs["cache_length"]).float(), rotary.inv_freq)
        return angles.cos() * rotary.attention_scaling, angles.sin() * rotary.attention_scaling

    # Streaming

    def load_weights(self, input_path: str) -> "_StreamedWeights":
        """Give the builder modules that are read when their turn comes."""
        return _StreamedWeights(self._checkpoint, smooth=self._smooth)

    def make_initializer(self, tensor: Any, /, name: str, **kwargs: Any) -> None:
        """Write a tensor to disk and keep where it is."""
        super().make_initializer(tensor, name, **kwargs)
        value = self.values[name]
        value.const_value = self._spool.add(value.const_value)

    def make_matmul_nbits(self, matmul: nn.Linear, basename: str, root_input: str, **kwargs: Any) -> str:
        """Add the matmul of one linear layer, in 4 bits; returns its node's name."""
        packed = pack_int4(matmul.weight, block_size=self.quant_attrs["matmul_block_size"])
        return str(super().make_matmul_nbits(packed, basename, root_input, **kwargs))

    def make_lm_head(self, lm_head: nn.Module) -> None:
        """Add the output head."""
        super().make_lm_head(lm_head)
        self._advance(1)

    def save_model(self, out_dir: str) -> None:
        """Write the graph, by the spool."""
        # The builder's own stamp asks git for a commit, and in a virtual environment inside a repository gets that
        # repository's: the same checkpoint would then give other digests after each commit.
        self.model.producer_version = importlib.metadata.version("onnxruntime-genai")
        self._spool.save(self.model)

    def update_genai_config(self, genai_config: dict[str, Any]) -> None:
        """Complete the library's configuration."""
        complete_genai_config(genai_config, self._checkpoint)


def _chunk(index: int) -> str:
    return f"/model/deepstack/chunk_{index}"


class _StreamedWeights:
    """What the builder walks over instead of a loaded model: the same modules, each read when its turn comes."""

    def __init__(self, checkpoint: Checkpoint, *, smooth: bool) -> None:
        self._smooth = smooth
        self._tensors = checkpoint.tensors
        self._head = checkpoint.lm_head
        self._config = checkpoint.text
        config = self._config
        with torch.device("meta"):
            self._embedding = nn.Embedding(config.vocab_size, config.hidden_size)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            norm = Qwen3VLTextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self._norm = self._filled(norm, f"{TEXT_PREFIX}norm.")
        # The graph's head is its own, also where the table that it is read from is the embeddings', too.
        self._head_factors = column_factors(self._head_rows()) if smooth else torch.ones(config.hidden_size)
        scale_outputs(self._norm, self._head_factors)
        # The builder recognises the final norm by where it sits in the model.
        self.model = SimpleNamespace(language_model=SimpleNamespace(norm=self._norm))

    def modules(self) -> Iterator[nn.Module]:
        yield self._embedding  # left on the meta device: embedding.onnx holds the table
        for index in range(self._config.num_hidden_layers):
            with torch.device("meta"):
                layer = Qwen3VLTextDecoderLayer(self._config, index)
            self._filled(layer, f"{TEXT_PREFIX}layers.{index}.")
            if self._smooth:
                smooth_layer(layer)
            yield layer
        yield self._norm
        self.lm_head.load_state_dict({"weight": self._tensors[self._head].read()}, assign=True)
        divide_columns(self.lm_head, self._head_factors)
        yield self.lm_head

    def _head_rows(self) -> Iterator[torch.Tensor]:
        head = self._tensors[self._head]
        for start in range(0, head.shape[0], _ROWS):
            yield head.read(slice(start, start + _ROWS))

    def _filled(self, module: _Module, prefix: str) -> _Module:
        state = {name: self._tensors[prefix + name].read() for name in module.state_dict()}
        module.load_state_dict(state, assign=True)
        return module
