"""The cores of vision and decoder in one process: no service, no wire, and the graph in our hands.

onnxruntime-genai computes the answers, which shares no code with the batch engine; where it would compute other
positions, the graph alone does.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
import onnxruntime_genai as og
import torch
from numpy.typing import NDArray

from decoder_service import chat
from decoder_service.families.family import Prompt
from decoder_service.families.registry import family_of
from decoder_service.request.prompt import PromptBuilder
from exporter.divergence import Asked, Graph
from serving.bundle import Bundle
from serving.media import media_digest
from triptych import Image, Message, Video
from vision_service import media
from vision_service.clip import VideoLimits
from vision_service.families import registry as vision_families
from vision_service.family import PreprocessLimits

_KINDS = {Image: chat.MediaKind.IMAGE, Video: chat.MediaKind.VIDEO}


@dataclass(frozen=True)
class Laid:
    """A conversation, laid out and encoded.

    Attributes:
        prompt: Ids and positions.
        features: [rows, (1 + L) x hidden].
        grids: Of each medium (t, h, w).
    """

    prompt: Prompt
    features: NDArray[np.float32]
    grids: tuple[tuple[int, int, int], ...]


class Whole:
    """A bundle, without services.

    Args:
        bundle: The model.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        limits = PreprocessLimits(
            1 << 26, VideoLimits(seconds=600, frames=10_000, sampled=768, pixels=1 << 24), 1 << 16
        )
        if bundle.has_encoder:
            family = vision_families.family_of(bundle)
            self._preprocessor = family.make_preprocessor(bundle, limits)
            self._encoder = family.load_encoder(
                bundle.vision_dir,
                device=torch.device("cpu"),
                dtype=torch.float32,
                out_dtype=torch.float32,
                operators=True,
            )
        self._prompts = PromptBuilder.load(bundle.decoder_dir, family_of(bundle))

    def lay_out(self, messages: Sequence[Message]) -> Laid:
        """Preprocess, encode and render a conversation."""
        rows: list[NDArray[np.float32]] = [np.zeros((0, self.bundle.feature_width), np.float32)]
        layouts: list[chat.Layout] = []

        def part(value: str | Image | Video) -> chat.Text | chat.Medium:
            if isinstance(value, str):
                return chat.Text(value)
            kind = _KINDS[type(value)]
            prepared = self._preprocessor.prepare(kind.value, value.data, media.Options())
            features = self._encoder.encode([prepared])[0].numpy()
            medium = chat.Medium(kind, media_digest(value.data))
            layouts.append(chat.Layout(medium, tuple(prepared.grid), len(features), tuple(prepared.timestamps)))
            rows.append(features)
            return medium

        conversation = [chat.Message(chat.Role(m.role), tuple(part(value) for value in m.parts)) for m in messages]
        prompt = self._prompts.expand(self._prompts.render(conversation), layouts)
        return Laid(prompt, np.concatenate(rows), tuple(layout.grid for layout in layouts))

    def greedy(self, laid: Laid, tokens: int, features: NDArray[np.float32] | None = None) -> list[int]:
        """Continue a prompt, until the end of the turn.

        Args:
            laid: The prompt.
            tokens: Most tokens to write.
            features: Other features than its own.
        """
        features = laid.features if features is None else features
        if laid.prompt.inputs is None:
            written, _ = self._graph.greedy(Asked(laid.prompt, features), tokens)
            ends = [index for index, token in enumerate(written) if token in self.bundle.tokens.eos]
            return written[: ends[0] + 1] if ends else written
        generator = self._generator(laid, tokens, features)
        out: list[int] = []
        while len(out) < tokens and not (out and out[-1] in self.bundle.tokens.eos):
            out.append(int(np.asarray(generator.get_logits()).reshape(-1).argmax()))
            if len(out) < tokens:
                generator.append_tokens(np.array([out[-1]], np.int32))
        return out

    def logits(self, laid: Laid, features: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Logits after the prompt."""
        features = laid.features if features is None else features
        if laid.prompt.inputs is None:
            (logits,) = self._graph.led(Asked(laid.prompt, features), [])
            return np.asarray(logits)
        generator = self._generator(laid, 1, features)
        return np.array(generator.get_logits()).reshape(-1)

    def logits_at(self, laid: Laid, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits after the prompt, from the graphs alone, at given positions [3, n]."""
        folder, text = self.bundle.decoder_dir, self.bundle.text
        embed = onnxruntime.InferenceSession(folder / "embedding.onnx")
        (embeds,) = embed.run(
            None,
            {
                "input_ids": laid.prompt.engine_token_ids[np.newaxis].astype(np.int64),
                "image_features": laid.features,
            },
        )
        session = onnxruntime.InferenceSession(self.bundle.graph_path("fp32"))
        empty = np.zeros((1, text.num_key_value_heads, 0, text.head_dim), np.float32)
        past = {value.name: empty for value in session.get_inputs() if value.name.startswith("past_key_values")}
        (logits,) = session.run(
            ["logits"],
            {
                "inputs_embeds": embeds,
                "attention_mask": np.ones((1, embeds.shape[1]), np.int64),
                "position_ids": positions[:, np.newaxis].astype(np.int64),
                **past,
            },
        )
        return np.asarray(logits)[0, -1]

    @functools.cached_property
    def _model(self) -> og.Model:
        return og.Model(str(self.bundle.decoder_dir))

    @functools.cached_property
    def _graph(self) -> Graph:
        return Graph(self.bundle, "fp32", threads=1, length=self.bundle.context_length)

    def _generator(self, laid: Laid, tokens: int, features: NDArray[np.float32]) -> og.Generator:
        params = og.GeneratorParams(self._model)
        params.set_search_options(max_length=len(laid.prompt.token_ids) + tokens)
        generator = og.Generator(self._model, params)
        inputs = og.NamedTensors()
        inputs["input_ids"] = laid.prompt.engine_token_ids[np.newaxis]
        inputs["pixel_values"] = features
        for name, value in (laid.prompt.inputs or {}).items():
            inputs[name] = value
        generator.set_inputs(inputs)
        return generator
