"""The checkpoint through transformers, in this process: the reference that the served system is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from demo.checkpoint import CHECKPOINT
from demo.quantize import imitate_int4

Images = Sequence[Image.Image]


class LocalModel:
    """Answers questions with a checkpoint directory, greedily and in float32.

    `int4` rounds the text model's weights as the bundle does; `deepstack=False` silences the DeepStack features.
    """

    def __init__(self, directory: Path = CHECKPOINT, *, int4: bool = False, deepstack: bool = True) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
        self._processor = Qwen2VLImageProcessorPil.from_pretrained(directory)
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
        self.model.train(False)
        imitate_int4(self.model, int4)
        if not deepstack:
            self.model.model.language_model.register_forward_pre_hook(_without_deepstack, with_kwargs=True)

    def answer(self, images: Images, question: str, max_tokens: int = 48) -> str:
        """The answer to one question about images."""
        return self.answer_all([(images, question)], max_tokens)[0]

    def answer_all(self, chats: Sequence[tuple[Images, str]], max_tokens: int = 48, batch: int = 25) -> list[str]:
        """The answers to many questions, some at a time."""
        answers: list[str] = []
        for start in range(0, len(chats), batch):
            answers.extend(self._generate(chats[start : start + batch], max_tokens))
        return answers

    @torch.inference_mode()
    def _generate(self, chats: Sequence[tuple[Images, str]], max_tokens: int) -> list[str]:
        images = [image for chat_images, _ in chats for image in chat_images]
        media: dict[str, Any] = dict(self._processor(images, return_tensors="pt")) if images else {}
        tokens = iter((media["image_grid_thw"].prod(-1) // self._processor.merge_size**2).tolist() if images else [])
        prompts = []
        for chat_images, question in chats:
            content = [{"type": "image"} for _ in chat_images] + [{"type": "text", "text": question}]
            message: Any = {"role": "user", "content": content}
            prompt = str(self._tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))
            before, *rest = prompt.split("<|image_pad|>")
            prompts.append(before + "".join("<|image_pad|>" * next(tokens) + part for part in rest))
        inputs = self._tokenizer(prompts, return_tensors="pt", padding=True)
        kinds = (inputs["input_ids"] == self.model.config.image_token_id).int()
        if images:
            media["mm_token_type_ids"] = kinds
        model: Any = self.model  # the mixin's generate is typed for its own classes
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_tokens,
            do_sample=False,
            **media,
        )
        said = output[:, inputs["input_ids"].shape[1] :]
        return [str(text).strip() for text in self._tokenizer.batch_decode(said, skip_special_tokens=True)]


def _without_deepstack(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    features = kwargs.get("deepstack_visual_embeds")
    if features is not None:
        kwargs["deepstack_visual_embeds"] = [torch.zeros_like(level) for level in features]
    return args, kwargs
