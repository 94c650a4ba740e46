"""The entries of `bundle.json` that each family defines. A new family adds a class and a member of `FamilyInfo`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
TokenId = Annotated[int, Field(ge=0)]


class Frozen(BaseModel):
    """Base of the parts of a bundle's description."""

    # Fields of later revisions are ignored: incompatible changes raise `format_version` instead.
    model_config = ConfigDict(frozen=True, extra="ignore")


class TextInfo(Frozen):
    """Dimensions of a language model."""

    hidden_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    head_dim: Positive
    vocab_size: Positive
    max_position_embeddings: Positive
    tie_word_embeddings: bool


class TextTokens(Frozen):
    """Ids of the control tokens of a language model."""

    eos: tuple[TokenId, ...] = Field(min_length=1)
    pad: TokenId | None = None


class Qwen3VLText(TextInfo):
    """Dimensions of Qwen3-VL's language model."""

    mrope_section: tuple[int, int, int]


class VisionInfo(Frozen):
    """Dimensions of Qwen3-VL's vision encoder."""

    depth: Positive
    hidden_size: Positive
    patch_size: Positive
    temporal_patch_size: Positive
    spatial_merge_size: Positive
    in_channels: Positive
    deepstack_visual_indexes: tuple[int, ...]


class TokenIds(TextTokens):
    """Ids of Qwen3-VL's control tokens."""

    image: TokenId
    video: TokenId
    vision_start: TokenId
    vision_end: TokenId


class Qwen3VLInfo(Frozen):
    """Qwen3-VL."""

    family: Literal["qwen3_vl"]
    text: Qwen3VLText
    vision: VisionInfo
    tokens: TokenIds
    # Features of one bundle's encoder may be used with the decoder of any bundle with the same fingerprint.
    encoder_fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def feature_width(self) -> int:
        """Width of one visual token's features: (1 + L) · hidden_size, with L intermediate feature maps."""
        return (1 + len(self.vision.deepstack_visual_indexes)) * self.text.hidden_size


FamilyInfo = Annotated[Qwen3VLInfo, Field(discriminator="family")]
"""The union of the families' descriptions, by `family`. One without an encoder has no `vision`."""
