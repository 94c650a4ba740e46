"""One prompt, run by transformers and by onnxruntime-genai: what the parity tests compare."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

STEPS = 24


@dataclass(frozen=True)
class Prompt:
    """Token ids and patches, as a processor would give them.

    Attributes:
        ids: int64 [sequence], each image and frame expanded to its placeholders.
        types: int64 [sequence], 0 for text, 1 for images, 2 for video (transformers' `mm_token_type_ids`).
        images: patches [n, patch] and grid [t, h, w] of each image.
        video: patches of all frames and grid [t, h, w] of the one video, if there is one.
    """

    ids: torch.Tensor
    types: torch.Tensor
    images: tuple[tuple[torch.Tensor, tuple[int, int, int]], ...] = ()
    video: tuple[torch.Tensor, tuple[int, int, int]] | None = None

    def model_inputs(self) -> dict[str, torch.Tensor]:
        """Keyword arguments for transformers' forward."""
        inputs = {"input_ids": self.ids[None], "mm_token_type_ids": self.types[None]}
        if self.images:
            inputs["pixel_values"] = torch.cat([patches for patches, _ in self.images])
            inputs["image_grid_thw"] = torch.tensor([grid for _, grid in self.images])
        if self.video is not None:
            inputs["pixel_values_videos"] = self.video[0]
            inputs["video_grid_thw"] = torch.tensor([self.video[1]])
        return inputs

    def frame_grids(self) -> NDArray[np.int64]:
        """The grids as the decoder gets them [n, 3]: each frame of a video is an image of its own."""
        grids = [grid for _, grid in self.images]
        if self.video is not None:
            t, h, w = self.video[1]
            grids += [(1, h, w)] * t
        return np.array(grids, np.int64).reshape(-1, 3)


class Reference:
    """A checkpoint in transformers, in float32."""

    def __init__(self, checkpoint: Path) -> None:
        model: Any = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
        self.model = model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def prompt(
        self, text: str, *, images: Sequence[tuple[int, int]] = (), video: tuple[int, int, int] | None = None
    ) -> Prompt:
        """Make a prompt with random images (each h, w in patches) and a random video (t, h, w)."""
        rng = torch.Generator().manual_seed(len(text))
        vision = self.model.config.vision_config
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pixels = [torch.rand(h * w, width, generator=rng) * 2 - 1 for h, w in images]
        head = "".join(_placeholders("image", h * w) for h, w in images)
        frames = None
        if video is not None:
            t, h, w = video
            frames = (torch.rand(t * h * w, width, generator=rng) * 2 - 1, video)
            head += "".join(f"<{0.5 * i:.1f} seconds>{_placeholders('video', h * w)}" for i in range(t))
        rendered = f"<|im_start|>user\n{head}{text}<|im_end|>\n<|im_start|>assistant\n"
        ids = self.tokenizer(rendered, return_tensors="pt").input_ids[0]
        config = self.model.config
        types = (ids == config.image_token_id).long() + 2 * (ids == config.video_token_id).long()
        parts = tuple((p, (1, h, w)) for p, (h, w) in zip(pixels, images, strict=True))
        return Prompt(ids=ids, types=types, images=parts, video=frames)

    @torch.no_grad()
    def logits(self, prompt: Prompt) -> NDArray[np.float32]:
        """Logits of the last position [vocabulary]."""
        return np.asarray(self.model(**prompt.model_inputs()).logits[0, -1])

    @torch.no_grad()
    def greedy(self, prompt: Prompt) -> list[int]:
        """The next 24 tokens of greedy generation, which no token ends."""
        output = self.model.generate(
            **prompt.model_inputs(), max_new_tokens=STEPS, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        return [int(token) for token in output[0, len(prompt.ids) :]]

    @torch.no_grad()
    def features(self, prompt: Prompt) -> NDArray[np.float32]:
        """The wide features of every image and frame in order [n, (1 + L) · hidden]."""
        config = self.model.config
        width = (1 + len(config.vision_config.deepstack_visual_indexes)) * config.text_config.hidden_size
        parts = [*prompt.images, *([prompt.video] if prompt.video is not None else [])]
        rows = [np.zeros((0, width), np.float32)]
        for patches, grid in parts:
            out = self.model.model.visual(patches, grid_thw=torch.tensor([grid]), return_dict=True)
            rows.append(np.asarray(torch.cat([out.pooler_output, *out.deepstack_features], dim=-1)))
        return np.concatenate(rows)

    def positions(self, prompt: Prompt) -> NDArray[np.int64]:
        """M-RoPE positions of the prompt [3, sequence]."""
        inputs = prompt.model_inputs()
        positions, _ = self.model.model.get_rope_index(
            inputs["input_ids"],
            inputs["mm_token_type_ids"],
            image_grid_thw=inputs.get("image_grid_thw"),
            video_grid_thw=inputs.get("video_grid_thw"),
        )
        return np.asarray(positions[:, 0])


class Exported:
    """A bundle's decoder directory in onnxruntime-genai.

    Args:
        decoder: the directory.
        end: the token that ends an answer. A random model may write any token, so name one that it will not.
    """

    def __init__(self, decoder: Path, *, end: int = 0) -> None:
        config = og.Config(str(decoder))
        one_thread = {"session_options": {"intra_op_num_threads": 1}}
        config.overlay(json.dumps({"model": {"eos_token_id": end, "decoder": one_thread}}))
        self._model = og.Model(config)
        settings = json.loads((decoder / "genai_config.json").read_text())["model"]
        self._image, self._video = settings["image_token_id"], settings["video_token_id"]

    def start(self, prompt: Prompt, features: NDArray[np.float32]) -> Any:
        """Prefill, with `features` standing at the placeholders; returns the generator."""
        parameters = og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=len(prompt.ids) + STEPS + 1, do_sample=False)
        generator = og.Generator(self._model, parameters)
        # A frame enters as an image: the embedding of its placeholder is overwritten, whichever it is.
        ids = torch.where(prompt.ids == self._video, self._image, prompt.ids)
        inputs = og.NamedTensors()
        inputs["input_ids"] = np.asarray(ids[None], np.int32)
        inputs["pixel_values"] = features
        inputs["image_grid_thw"] = prompt.frame_grids()
        inputs["num_image_tokens"] = np.array([len(features)], np.int64)
        generator.set_inputs(inputs)
        return generator


def unused(tokens: Sequence[int]) -> int:
    """The smallest id that is not among `tokens`."""
    return next(token for token in range(len(tokens) + 1) if token not in tokens)


def last_logits(generator: Any) -> NDArray[np.float32]:
    """Logits of the last position [vocabulary]."""
    return np.asarray(generator.get_logits()).reshape(-1)


def greedy(generator: Any) -> list[int]:
    """The next 24 tokens."""
    tokens = []
    for _ in range(STEPS):
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


def _placeholders(medium: str, patches: int) -> str:
    return f"<|vision_start|>{f'<|{medium}_pad|>' * (patches // 4)}<|vision_end|>"
