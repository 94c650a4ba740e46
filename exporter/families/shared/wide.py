"""The decoder as a graph: onnxruntime-genai's builder of the family, widened for DeepStack and made to stream.

The builders are classes made for subclassing, so nothing of them is patched. What is overridden, and why:

- `make_layer`, and the input's shape, carry the DeepStack features. `inputs_embeds` is
  [batch, sequence, (1 + L) · hidden]; the first chunk enters the network and chunk i + 1 is added to the residual
  stream after layer i. Text positions hold zeros there, so that a decode step needs nothing special.
- `make_rope_init` keeps M-RoPE where there is YaRN, for which the builder would drop it; the tables of cosines and
  sines are transformers' own, so that all of YaRN's options count. LongRoPE's two sets are in one table (`rotation`),
  and the graph's metadata says where the second begins.
- `load_weights` hands out one layer at a time, `make_matmul_nbits` quantizes a weight when its node is made, and
  `make_initializer` writes each tensor to disk at once. The builder itself holds the whole float32 decoder until the
  end: 13.7 GB for the 2B model, where this way the 4B takes 2 GB.
"""

import importlib.metadata
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from decoder_service.engine.model import LONGEST_SHORT
from exporter.calibrated import Plan
from exporter.precision import Phase, Precision
from exporter.progress import Advance
from exporter.quantize import pack_blocks
from exporter.recipe import Kind, Recipe, block_of
from exporter.spool import Spool

from .adapted import AdaptedDecoder
from .checkpoint import Checkpoint
from .genai import complete_genai_config
from .layers import head_rows, read_layer, read_norm
from .nodes import PROJ, PROJ_UP, matrices
from .rotation import longest_short, table
from .smoothing import HEAD, column_factors, divide_columns, scale_outputs, sites, smooth_keys, smooth_layer
from .variant import Variant


class WideDecoder(AdaptedDecoder):
    """A builder's text model with wide embeddings; `of_family` puts it before a family's builder.

    Args:
        config: the model's; the builder writes into it.
        weight_type: the type of weights, for the builder: INT4 or FLOAT.
        options: the builder's own.
        checkpoint: where the weights come from.
        spool: where they go.
        recipe: bits of the matrices, where weights are INT4.
        graph: which one it is.
        smooth: even out outlier channels, which changes nothing before rounding.
        plan: how a calibration would have sites rounded; None goes by the weights alone.
        advance: called after each layer, and after the output head.
    """

    def __init__(
        self,
        config: Any,
        weight_type: ir.DataType,
        options: dict[str, Any],
        *,
        checkpoint: Checkpoint,
        spool: Spool,
        recipe: Recipe,
        graph: Precision | Phase,
        smooth: bool,
        plan: Plan | None,
        advance: Advance,
    ) -> None:
        self._graph: Precision | Phase = graph
        self._plan = plan
        self._smooth = smooth
        self._checkpoint = checkpoint
        self._spool = spool
        self._recipe = recipe
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

    # Matrices

    def make_attention_unpacked(self, layer_id: int, attention: nn.Module, root_input: str, **kwargs: Any) -> None:
        """Do nothing: the matrices are apart."""

    def make_mlp_unpacked(self, layer_id: int, mlp: nn.Module, root_input: str) -> None:
        """Do nothing: the matrices are apart."""

    def is_packed_matmul_supported(self) -> bool:
        """Whether Q, K and V may become one matrix: recipes tell them apart."""
        return False

    # Positions

    def make_rope_init(self, config: Any) -> None:
        """Select M-RoPE, or the plain rotation of what is rotated of a head."""
        if self._checkpoint.mrope_section is not None:
            self.rope_attrs["op_type"] = "MRotaryEmbedding"
            self.rope_attrs["mrope_section"] = self._checkpoint.mrope_section
            return
        rotated = 2 * len(self._rotary.inv_freq)
        self.rope_attrs["partial_rotary_factor"] = rotated / self.head_size
        self.rope_attrs["rotary_embedding_dim"] = rotated if rotated < self.head_size else 0

    def is_fused_rope_supported(self) -> bool:
        """Whether attention may rotate by itself: positions are the graph's input."""
        return False

    def make_rotary_embedding_caches_from_scratch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cosines and sines of every position, [positions, width of half a head]."""
        return table(self._rotary, self._checkpoint.text)

    @property
    def _rotary(self) -> Any:
        return self._checkpoint.variant.rotary(self._checkpoint.text)

    # Streaming

    def load_weights(self, input_path: str) -> "StreamedWeights":
        """Give the builder modules that are read when their turn comes."""
        self._weights = StreamedWeights(self._checkpoint, self._graph, smooth=self._smooth, plan=self._plan)
        return self._weights

    def make_initializer(self, tensor: Any, /, name: str, **kwargs: Any) -> None:
        """Write a tensor to disk and keep where it is."""
        super().make_initializer(tensor, name, **kwargs)
        value = self.values[name]
        value.const_value = self._spool.add(value.const_value)

    def make_matmul_nbits(self, matmul: nn.Linear, basename: str, root_input: str, **kwargs: Any) -> str:
        """Add the matmul of one linear layer, in the recipe's bits; returns its node's name."""
        kinds, layer, part = matrices(basename)
        bits = self._recipe.adapter
        if part == PROJ:
            bits = self._recipe.bits(kinds[0], layer, self._checkpoint.text.num_hidden_layers)
        block = block_of(bits, self.quant_attrs["matmul_block_size"], matmul.in_features)
        # What B reads is not looked at by a calibration.
        importance = None if part == PROJ_UP else self._weights.importance(kinds[0])
        packed = pack_blocks(matmul.weight, bits=bits, block_size=block, importance=importance)
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
        short = longest_short(self._checkpoint.text)
        if short is not None:
            self.model.metadata_props[LONGEST_SHORT] = str(short)
        self._spool.save(self.model)

    def update_genai_config(self, genai_config: dict[str, Any]) -> None:
        """Complete the library's configuration."""
        complete_genai_config(genai_config, self._checkpoint)


def of_family(kind: type[WideDecoder], variant: Variant) -> type[WideDecoder]:
    """The class that builds a graph of a family: `kind` over the family's own builder."""
    return type(f"{variant.label} {kind.__name__}", (kind, variant.builder), {})


def _chunk(index: int) -> str:
    return f"/model/deepstack/chunk_{index}"


class StreamedWeights:
    """What the builder walks over instead of a loaded model: the same modules, each read when its turn comes.

    Args:
        checkpoint: where the weights come from.
        graph: which one is built.
        smooth: even out outlier channels.
        plan: how a calibration would have it; None goes by the weights alone.
    """

    def __init__(self, checkpoint: Checkpoint, graph: Precision | Phase, *, smooth: bool, plan: Plan | None) -> None:
        self._checkpoint = checkpoint
        self._graph = graph
        self._smooth = smooth
        self._plan = plan
        config = checkpoint.text
        with torch.device("meta"):
            self._embedding = nn.Embedding(config.vocab_size, config.hidden_size)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._norm = read_norm(checkpoint)
        # The graph's head is its own, also where the table that it is read from is the embeddings', too.
        self._head_factors = self._factors_of_head()
        scale_outputs(self._norm, self._head_factors)
        self._importances: dict[Kind, torch.Tensor] = {}
        # The builder recognises the final norm by where it sits in the model.
        self.model = SimpleNamespace(language_model=SimpleNamespace(norm=self._norm))

    def importance(self, kind: Kind) -> NDArray[np.float32] | None:
        """Of the inputs of a matrix of the module that was yielded last; None where nothing was calibrated."""
        return self._importances[kind].numpy() if self._plan is not None else None

    def modules(self) -> Iterator[nn.Module]:
        """The modules in the builder's order; what was yielded before the last one is gone."""
        yield self._embedding  # left on the meta device: embedding.onnx holds the table
        for index in range(self._checkpoint.text.num_hidden_layers):
            layer = read_layer(self._checkpoint, index)
            if self._plan is not None:
                self._follow(self._plan, layer, index)
            elif self._smooth:
                smooth_layer(layer)
            if self._smooth:
                smooth_keys(layer)
            yield layer
        yield self._norm
        self.lm_head.load_state_dict({"weight": self._checkpoint.tensors[self._checkpoint.lm_head].read()}, assign=True)
        divide_columns(self.lm_head, self._head_factors)
        if self._plan is not None:
            self._importances = {"head": self._plan[-1, HEAD].importance * self._head_factors}
        yield self.lm_head

    def _follow(self, plan: Plan, layer: Any, index: int) -> None:
        for site in sites(layer):
            planned = plan[index, site.name]
            factors = planned.factors[self._graph]
            site.apply(factors)
            importance = planned.importance * site.inputs(factors)
            self._importances |= dict.fromkeys(site.readers, importance)

    def _factors_of_head(self) -> torch.Tensor:
        if self._plan is not None:
            return self._plan[-1, HEAD].factors[self._graph]
        if self._smooth:
            return column_factors(head_rows(self._checkpoint))
        return torch.ones(self._checkpoint.text.hidden_size)
