"""Qwen3: the language model of Qwen3-VL, layer for layer, without an encoder and without DeepStack.

It is built from Qwen3-VL's own layers and graph: where time, height and width are equal, as they are in text, M-RoPE is
the plain rotation, and here all of a head is time's (decision 46).
"""

from __future__ import annotations

from transformers import Qwen3Config, Qwen3ForCausalLM

from exporter.families.qwen3_vl.variant import VARIANT as QWEN3_VL
from exporter.families.shared.family import family
from exporter.families.shared.variant import OtherNames, Variant

VARIANT = Variant(
    name="qwen3",
    label="Qwen3",
    title="dense Qwen3",
    config=Qwen3Config,
    model=Qwen3ForCausalLM,
    layer=QWEN3_VL.layer,
    norm=QWEN3_VL.norm,
    rotary=QWEN3_VL.rotary,
    builder=QWEN3_VL.builder,
    mrope_section=None,
    encoder=None,
    # The library's pipeline that takes embeddings; the type of text models has no graph for them.
    genai_type=QWEN3_VL.genai_type,
    other_names=OtherNames(
        embedding="model.embed_tokens.weight",
        prefixes=(("model.", "model.language_model."),),
    ),
)

QWEN3 = family(VARIANT)
