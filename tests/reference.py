"""What every answer is held against: transformers itself, whole, in fp32, on the same weights.

Nothing of Triptych is used here. Images become patches by transformers' Pillow backend, video frames by the same
backend two at a time, prompts by the tokenizer's own chat template and the processor's own expansion.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as resize_frame
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as resize_volume


@dataclass(frozen=True)
class Clip:
    """A video as the reference takes it: every frame of the file, and how many go to a second."""

    frames: tuple[Image.Image, ...]
    fps: float


Part = str | bytes | Clip
Turn = tuple[str, Sequence[Part]]


@dataclass(frozen=True)
class Inputs:
    """What the reference model is given.

    Attributes:
        input_ids: [1, n].
        mm_token_type_ids: [1, n]: 0 text, 1 image, 2 video.
        media: Keyword arguments for the model: pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw,
            and, of a family that has it, second_per_grid_ts.
    """

    input_ids: torch.Tensor
    mm_token_type_ids: torch.Tensor
    media: dict[str, torch.Tensor]

    def keywords(self) -> dict[str, torch.Tensor]:
        """Everything, as the model's forward takes it."""
        return {"input_ids": self.input_ids, "mm_token_type_ids": self.mm_token_type_ids, **self.media}


class _Qwen3VL:
    """What Qwen3VLProcessor makes of videos."""

    videos: Mapping[str, Any] = {}
    """Every published model has a file about videos."""

    @staticmethod
    def indices(total: int, fps: float, settings: dict[str, Any]) -> list[int]:
        """The frames that are sampled."""
        count = min(max(int(total / fps * settings["fps"]), settings["min_frames"]), settings["max_frames"], total)
        indices: list[int] = np.linspace(0, total - 1, count).round().astype(int).tolist()
        return indices

    @staticmethod
    def size(count: int, height: int, width: int, settings: dict[str, Any]) -> tuple[int, int]:
        """Height and width of the resized frames."""
        size: tuple[int, int] = resize_volume(
            num_frames=count,
            height=height,
            width=width,
            temporal_factor=2,
            factor=settings["patch_size"] * settings["merge_size"],
            min_pixels=settings["size"]["shortest_edge"],
            max_pixels=settings["size"]["longest_edge"],
        )
        return size

    @staticmethod
    def times(indices: list[int], total: int, fps: float) -> list[float]:
        """The time of each pair of frames."""
        pairs = [*indices, indices[-1]] if len(indices) % 2 else indices
        return [(a + b) / 2 / fps for a, b in zip(pairs[0::2], pairs[1::2], strict=True)]

    @staticmethod
    def text(grid: list[int], times: list[float], merge: int) -> str:
        """What the placeholder of a video becomes."""
        _, h, w = grid
        pads = "<|vision_start|>" + "<|video_once|>" * (h * w // merge) + "<|vision_end|>"
        return "".join(f"<{time:.1f} seconds>{pads}" for time in times)


class _Qwen25VL:
    """What Qwen2_5_VLProcessor makes of videos."""

    videos: Mapping[str, Any] = {
        "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768},
        "fps": 2,
        "min_frames": 4,
        "max_frames": 768,
    }
    """What Qwen2VLVideoProcessor does where no file says otherwise; its module needs torchvision."""

    @staticmethod
    def indices(total: int, fps: float, settings: dict[str, Any]) -> list[int]:
        """The frames that are sampled: as Qwen2VLVideoProcessor.sample_frames."""
        most = min(settings["max_frames"], total) // 2 * 2
        count = int(min(max(total / fps * settings["fps"], settings["min_frames"]), most) // 2 * 2)
        indices: list[int] = torch.arange(0, total, total / count).int().tolist()
        return indices

    @staticmethod
    def size(count: int, height: int, width: int, settings: dict[str, Any]) -> tuple[int, int]:
        """Height and width of the resized frames."""
        size: tuple[int, int] = resize_frame(
            height,
            width,
            factor=settings["patch_size"] * settings["merge_size"],
            min_pixels=settings["size"]["shortest_edge"],
            max_pixels=settings["size"]["longest_edge"],
        )
        return size

    @staticmethod
    def times(indices: list[int], total: int, fps: float) -> list[float]:
        """The time of each pair of frames: multiples of temporal_patch_size / metadata.sampled_fps."""
        return [index * 2 / (len(indices) / total * fps) for index in range(len(indices) // 2)]

    @staticmethod
    def text(grid: list[int], times: list[float], merge: int) -> str:
        """What the placeholder of a video becomes."""
        t, h, w = grid
        return "<|video_once|>" * (t * h * w // merge)


_FAMILIES = {"qwen3_vl": _Qwen3VL, "qwen2_5_vl": _Qwen25VL}


class Reference:
    """transformers on one checkpoint.

    Args:
        checkpoint: Its directory.
        max_pixels: Greatest area of a resized image, in the place of the checkpoint's own.
    """

    def __init__(self, checkpoint: Path, *, max_pixels: int | None = None) -> None:
        self.model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self._family = _FAMILIES[self.model.config.model_type]
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self._images = _settings(checkpoint / "preprocessor_config.json")
        if max_pixels is not None:
            self._images["size"]["longest_edge"] = max_pixels
        video = checkpoint / "video_preprocessor_config.json"
        self._videos = _settings(video) if video.is_file() else {**self._images, **self._family.videos}
        self.eos = self.model.generation_config.eos_token_id

    def inputs(self, turns: Sequence[Turn]) -> Inputs:
        """Lay a conversation out as the family's processor does.

        Args:
            turns: Roles and parts: text, image files as bytes, clips.
        """
        images: list[tuple[torch.Tensor, list[int]]] = []
        clips: list[tuple[torch.Tensor, list[int], list[float]]] = []
        messages = []
        for role, parts in turns:
            content: list[dict[str, str]] = []
            for part in parts:
                match part:
                    case str():
                        content.append({"type": "text", "text": part})
                    case bytes():
                        content.append({"type": "image"})
                        images.append(self._image(part))
                    case Clip():
                        content.append({"type": "video"})
                        clips.append(self._clip(part))
            messages.append({"role": role, "content": content})
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        merge = self._images["merge_size"] ** 2
        for _, (_, h, w) in images:
            text = text.replace("<|image_pad|>", "<|image_once|>" * (h * w // merge), 1)
        for _, grid, times in clips:
            text = text.replace("<|video_pad|>", self._family.text(grid, times, merge), 1)
        text = text.replace("<|image_once|>", "<|image_pad|>").replace("<|video_once|>", "<|video_pad|>")
        ids = self.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        config = self.model.config
        types = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
        media: dict[str, torch.Tensor] = {}
        if images:
            media["pixel_values"] = torch.cat([pixels for pixels, _ in images])
            media["image_grid_thw"] = torch.tensor([grid for _, grid in images])
        if clips:
            media["pixel_values_videos"] = torch.cat([pixels for pixels, *_ in clips])
            media["video_grid_thw"] = torch.tensor([grid for _, grid, *_ in clips])
            if self._family is _Qwen25VL:
                media["second_per_grid_ts"] = torch.tensor([times[1] if times[1:] else 0.0 for *_, times in clips])
        return Inputs(ids, types, media)

    def positions(self, inputs: Inputs) -> torch.Tensor:
        """M-RoPE positions, [3, n]."""
        layout = {name: value.clone() for name, value in inputs.media.items() if not name.startswith("pixel")}
        positions, _ = self.model.model.get_rope_index(inputs.input_ids, inputs.mm_token_type_ids, **layout)
        return positions[:, 0]

    def features(self, pixel_values: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        """Merged and DeepStack features side by side, [tokens, (1 + L) x hidden]."""
        with torch.inference_mode():
            output = self.model.model.visual(pixel_values, grid_thw=grid_thw, return_dict=True)
        return torch.cat([output.pooler_output, *getattr(output, "deepstack_features", ())], dim=-1)

    def logits(self, inputs: Inputs) -> torch.Tensor:
        """Logits after the last token of the prompt, [vocabulary]."""
        self.model.model.rope_deltas = None
        with torch.inference_mode():
            return self.model(**inputs.keywords(), logits_to_keep=1).logits[0, -1]

    def generate(self, inputs: Inputs, tokens: int, *, stop: bool = True) -> list[int]:
        """Greedy continuation.

        Args:
            inputs: The prompt.
            tokens: Most tokens to write.
            stop: Whether the end of the turn ends it; else it goes on to `tokens`.
        """
        self.model.model.rope_deltas = None
        end: Any = self.eos if stop else []
        with torch.inference_mode():
            out = self.model.generate(
                **inputs.keywords(),
                max_new_tokens=tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=end or None,
                **({} if stop else {"min_new_tokens": tokens}),
            )
        return [int(token) for token in out[0, inputs.input_ids.shape[1] :]]

    def _image(self, data: bytes) -> tuple[torch.Tensor, list[int]]:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        out = Qwen2VLImageProcessorPil(**self._images)(images=[image], return_tensors="pt")
        return out["pixel_values"], out["image_grid_thw"][0].tolist()

    def _clip(self, clip: Clip) -> tuple[torch.Tensor, list[int], list[float]]:
        """Patches, grid, and the time of each temporal patch."""
        settings = self._videos
        indices = self._family.indices(len(clip.frames), clip.fps, settings)
        width, height = clip.frames[0].size
        rows, columns = self._family.size(len(indices), height, width, settings)
        frames = [clip.frames[i].resize((columns, rows), Image.Resampling.BICUBIC) for i in indices]
        if len(frames) % 2:
            frames.append(frames[-1])
        image_settings = {**self._images, "do_resize": False}
        flat = Qwen2VLImageProcessorPil(**image_settings)(images=frames, return_tensors="pt")
        patch = settings["patch_size"]
        # [frame, patch, channel, time, row, column]: a still has both times alike; a pair takes one from each frame.
        stills = flat["pixel_values"].reshape(len(frames), -1, 3, 2, patch, patch)
        pairs = torch.stack([stills[0::2, :, :, 0], stills[1::2, :, :, 1]], dim=3)
        pixels = pairs.reshape(-1, 3 * 2 * patch * patch)
        times = self._family.times(indices, len(clip.frames), clip.fps)
        return pixels, [len(frames) // 2, rows // patch, columns // patch], times


def _settings(path: Path) -> dict[str, Any]:
    settings = json.loads(path.read_text())
    names = (
        "size",
        "min_pixels",
        "max_pixels",
        "patch_size",
        "temporal_patch_size",
        "merge_size",
        "image_mean",
        "image_std",
    )
    defaults: dict[str, Any] = {"fps": 2, "min_frames": 4, "max_frames": 768} if "video" in path.name else {}
    kept = {name: settings[name] for name in names if name in settings}
    return {**kept, **{name: settings.get(name, value) for name, value in defaults.items()}}
