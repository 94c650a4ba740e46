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


class QwenVLText(TextInfo):
    """Dimensions of the language model of Qwen's vision families."""

    mrope_section: tuple[int, int, int]


class VisionInfo(Frozen):
    """Dimensions of a vision encoder that merges blocks of patches."""

    depth: Positive
    hidden_size: Positive
    patch_size: Positive
    temporal_patch_size: Positive
    spatial_merge_size: Positive
    in_channels: Positive


class Qwen3VLVision(VisionInfo):
    """Dimensions of Qwen3-VL's vision encoder."""

    deepstack_visual_indexes: tuple[int, ...]


class Qwen25VLVision(VisionInfo):
    """Dimensions of Qwen2.5-VL's vision encoder.

    Attributes:
        window_size: edge of a window of attention, in pixels.
        full_attention_layers: the layers whose attention has no windows.
        tokens_per_second: steps of a video's time positions in a second.
    """

    window_size: Positive
    full_attention_layers: tuple[int, ...]
    tokens_per_second: Positive


class ImageTokens(TextTokens):
    """Ids of the control tokens of a model that takes images.

    Attributes:
        image: of a row of an image's features.
    """

    image: TokenId


class TokenIds(ImageTokens):
    """Ids of the control tokens of Qwen's vision families, which take videos, too."""

    video: TokenId
    vision_start: TokenId
    vision_end: TokenId


class Qwen3VLInfo(Frozen):
    """Qwen3-VL."""

    family: Literal["qwen3_vl"]
    text: QwenVLText
    vision: Qwen3VLVision
    tokens: TokenIds
    # Features of one bundle's encoder may be used with the decoder of any bundle with the same fingerprint.
    encoder_fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def feature_width(self) -> int:
        """Width of one visual token's features: (1 + L) · hidden_size, with L intermediate feature maps."""
        return (1 + len(self.vision.deepstack_visual_indexes)) * self.text.hidden_size


class Qwen25VLInfo(Frozen):
    """Qwen2.5-VL."""

    family: Literal["qwen2_5_vl"]
    text: QwenVLText
    vision: Qwen25VLVision
    tokens: TokenIds
    # As in `Qwen3VLInfo`.
    encoder_fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def feature_width(self) -> int:
        """Width of one visual token's features: hidden_size."""
        return self.text.hidden_size


class Phi4MultimodalText(TextInfo):
    """Dimensions of Phi-4-multimodal's language model.

    Attributes:
        original_max_position_embeddings: tokens up to which the rotation has the short factors of LongRoPE; longer
            sequences have the long ones.
    """

    original_max_position_embeddings: Positive


class Phi4MultimodalVision(VisionInfo):
    """Dimensions of Phi-4-multimodal's vision encoder.

    Attributes:
        crop_size: edge of the squares that an image is divided into, in pixels.
    """

    crop_size: Positive


class Phi4MultimodalInfo(Frozen):
    """Phi-4-multimodal, which takes images and text here: its speech encoder is not served."""

    family: Literal["phi4_multimodal"]
    text: Phi4MultimodalText
    vision: Phi4MultimodalVision
    tokens: ImageTokens
    # As in `Qwen3VLInfo`.
    encoder_fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def feature_width(self) -> int:
        """Width of one visual token's features: hidden_size."""
        return self.text.hidden_size


class Qwen3Info(Frozen):
    """Qwen3, which has no encoder."""

    family: Literal["qwen3"]
    text: TextInfo
    tokens: TextTokens

    @property
    def feature_width(self) -> int:
        """Width of the decoder's input: hidden_size."""
        return self.text.hidden_size


WithEncoder = Qwen3VLInfo | Qwen25VLInfo | Phi4MultimodalInfo
"""The families that take images; those whose tokens are `TokenIds` take videos, too."""

FamilyInfo = Annotated[WithEncoder | Qwen3Info, Field(discriminator="family")]
"""The union of the families' descriptions, by `family`. One without an encoder has no `vision`."""
