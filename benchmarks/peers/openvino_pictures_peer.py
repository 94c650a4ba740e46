"""OpenVINO GenAI as a peer with pictures: its VLMPipeline, and its continuous batching for concurrent questions."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
import openvino
import openvino_genai
from PIL import Image

from benchmarks.peers.protocol import CannotError, Counts, Options, Question, serve


class OpenVinoPictures:
    """A model exported by optimum-intel. See `PictureModel`.

    Args:
        options: Options of the model.
    """

    def __init__(self, options: Options) -> None:
        self.versions = {"openvino": openvino.__version__, "openvino_genai": openvino_genai.__version__}
        threads = {"INFERENCE_NUM_THREADS": options.threads}
        self._pipeline = openvino_genai.VLMPipeline(options.model, "CPU", **threads)
        self._history = openvino_genai.ChatHistory()
        self._batches: Any = None
        if options.streams > 1:
            scheduler = openvino_genai.SchedulerConfig()
            scheduler.max_num_seqs = options.streams
            # Its default of 256 splits prompts, which is slower if no other request waits.
            scheduler.max_num_batched_tokens = options.streams * options.context
            self._batches = openvino_genai.ContinuousBatchingPipeline(
                options.model, scheduler, "CPU", threads, {}, threads
            )

    def ask(self, questions: Sequence[Question], new_tokens: int) -> Counts:
        """See `PictureModel`."""
        config = _exactly(new_tokens)
        if len(questions) > 1:
            if any(question.clip for question in questions):
                raise CannotError("concurrent questions about clips are not measured")
            texts = [question.text for question in questions]
            pictures = [_media(question)["images"] for question in questions]
            configs = [config] * len(questions)
            return _counts(self._batches.generate(texts, images=pictures, generation_config=configs))
        self._history = openvino_genai.ChatHistory()
        return self._answer(questions[0].text, config, _media(questions[0]))

    def follow(self, text: str, new_tokens: int) -> Counts:
        """See `PictureModel`."""
        return self._answer(text, _exactly(new_tokens), {})

    def _answer(self, text: str, config: Any, media: dict[str, list[Any]]) -> Counts:
        self._history.append({"role": "user", "content": text})
        result = self._pipeline.generate(self._history, generation_config=config, **media)
        self._history.append({"role": "assistant", "content": result.texts[0]})
        return _counts([result])


def _exactly(new_tokens: int) -> Any:
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = new_tokens
    config.ignore_eos = True
    config.do_sample = False
    return config


def _media(question: Question) -> dict[str, list[Any]]:
    """The media as arguments of its calls."""
    pictures = [np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))[None] for picture in question.pictures]
    media = {"images": [openvino.Tensor(picture) for picture in pictures]}
    if question.clip is not None:
        metadata = openvino_genai.VideoMetadata()
        metadata.fps = question.fps
        metadata.frames_indices = list(range(question.frames))  # otherwise it samples only some of them
        media["videos"] = [openvino.Tensor(_frames(question.clip, question.frames))]
        media["videos_metadata"] = [metadata]
    return media


def _frames(clip: bytes, count: int) -> np.ndarray[Any, Any]:
    """Frames sampled evenly from the first to the last, as in transformers; [count, height, width, 3]."""
    with av.open(io.BytesIO(clip), "r") as file:
        frames = list(file.decode(video=0))
    chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
    return np.stack([frames[n].to_ndarray(format="rgb24") for n in chosen])


def _counts(results: Sequence[Any]) -> Counts:
    metrics = [result.perf_metrics for result in results]
    # Each of the concurrent results has the new tokens of all, and its own prompt tokens.
    return Counts(metrics[0].get_num_generated_tokens(), sum(one.get_num_input_tokens() for one in metrics))


if __name__ == "__main__":
    serve(OpenVinoPictures)
