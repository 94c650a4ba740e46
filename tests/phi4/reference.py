"""What transformers makes of the conversations, with its own image processor and PEFT: run by `tests/phi4/run`.

It runs in an environment of its own, which has torchvision and PEFT. Nothing of Triptych is used here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tests.phi4.torchvision_operators  # noqa: F401  # declares them before torchvision is imported

# isort: split
from transformers import AutoTokenizer, Phi4MultimodalForCausalLM
from transformers.models.phi4_multimodal.feature_extraction_phi4_multimodal import Phi4MultimodalFeatureExtractor
from transformers.models.phi4_multimodal.image_processing_phi4_multimodal import Phi4MultimodalImageProcessor
from transformers.models.phi4_multimodal.processing_phi4_multimodal import Phi4MultimodalProcessor

from tests.phi4.shapes import CONVERSATIONS, SHAPES, TOKENS, Picture, Turn
from tests.phi4_checkpoints import IMAGE, make_phi4
from tests.pictures import noise


class Reference:
    """transformers on one checkpoint of layout "native".

    Args:
        checkpoint: Its directory.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._model: Any = Phi4MultimodalForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        self._model.eval()
        self._model.load_adapter(str(checkpoint / "vision-lora"), adapter_name="vision")
        self._embed = self._model.model.embed_tokens_extend.image_embed
        # With `sdpa`, attention over complete crops is causal in transformers 5.23: its modules say `is_causal`, and it
        # makes no mask where nothing is masked. Eager attention is bidirectional, as the model was trained.
        self._embed.img_processor.set_attn_implementation("eager")
        names = {"image_token": IMAGE, "audio_token": "<|endoftext11|>"}
        tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint, extra_special_tokens=names)
        self._images = Phi4MultimodalImageProcessor.from_pretrained(checkpoint)
        self._processor = Phi4MultimodalProcessor(self._images, Phi4MultimodalFeatureExtractor(), tokenizer)
        self._tokenizer = tokenizer
        self._crop: int = self._embed.crop_size
        self._image: int = self._embed.config.vision_config.image_token_id

    @torch.no_grad()
    def answer(self, turns: list[Turn]) -> dict[str, Any]:
        """Ids, grids, features, logits after the prompt, and greedy tokens of a conversation."""
        sizes = [part for _, parts in turns for part in parts if isinstance(part, Picture)]
        pictures = [noise(*part.size(self._crop), part.seed) for part in sizes]
        text = self._tokenizer.apply_chat_template(
            [{"role": role, "content": [_part(part) for part in parts]} for role, parts in turns],
            tokenize=False,
            add_generation_prompt=True,
        )
        shown = dict(self._images(images=pictures, return_tensors="pt")) if pictures else {}
        counted = shown.pop("num_img_tokens", torch.zeros(0)).tolist()
        found = zip(shown.get("image_sizes", ()), shown.get("image_attention_mask", ()), strict=True)
        grids = [self._grid(size, mask) for size, mask in found]
        rows = [h // 2 * (w // 2 + 1) + 1 + self._edge * (self._edge + 1) for _, h, w in grids]
        ids = self._ids(text, rows)
        if self._edge == 16 and pictures:  # the processor counts too many tokens of other crops
            assert rows == counted
            assert torch.equal(ids, self._processor(text=[text], images=pictures, return_tensors="pt")["input_ids"])
        self._model.enable_adapters()
        self._model.set_adapter("vision")
        if not pictures:
            self._model.disable_adapters()
        features = self._features(sum(rows), shown)
        logits, tokens = self._greedy(ids, features)
        first = self._model(input_ids=ids, **shown, use_cache=False, logits_to_keep=1).logits[0, -1]
        torch.testing.assert_close(logits, first, rtol=0, atol=1e-5)
        return {
            "ids": ids[0].numpy(),
            "grids": np.array(grids, np.int64).reshape(-1, 3),
            "features": features.numpy(),
            "logits": logits.numpy(),
            "tokens": np.array(tokens),
        }

    @property
    def _edge(self) -> int:
        """Tokens along an edge of a crop."""
        return -(-(self._crop // self._embed.config.vision_config.patch_size) // 2)

    def _grid(self, size: torch.Tensor, mask: torch.Tensor) -> tuple[int, int, int]:
        rows, columns = (int(one) // self._crop for one in size)
        edge = self._edge
        seen = mask[1 : rows * columns + 1, 0::2, 0::2].reshape(rows, columns, edge, edge).transpose(1, 2)
        seen = seen.reshape(rows * edge, columns * edge)
        return 1, 2 * int(seen[:, 0].sum()), 2 * int(seen[0].sum())

    def _ids(self, text: str, rows: list[int]) -> torch.Tensor:
        for count in rows:
            text = text.replace(IMAGE, "\0" * count, 1)
        return self._tokenizer(text.replace("\0", IMAGE), return_tensors="pt", add_special_tokens=False).input_ids

    def _features(self, count: int, shown: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the model puts in the place of image tokens, [count, hidden]."""
        embeds = torch.zeros(1, count, self._model.config.hidden_size)
        return self._embed(torch.full((1, count), self._image), embeds, **shown)[0] if count else embeds[0]

    def _greedy(self, ids: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """Logits after the prompt, and the tokens of passes over the whole sequence.

        Without a cache: see tests/exporter/families/phi4_multimodal/cases.py. With embeddings: a random model may
        answer with the placeholder of an image.
        """
        embeds = self._model.model.embed_tokens(ids)
        embeds[0, ids[0] == self._image] = features
        logits: list[torch.Tensor] = []
        tokens: list[int] = []
        for _ in range(TOKENS):
            logits.append(self._model(inputs_embeds=embeds, use_cache=False, logits_to_keep=1).logits[0, -1])
            tokens.append(int(logits[-1].argmax()))
            embeds = torch.cat([embeds, self._model.model.embed_tokens(torch.tensor([tokens[-1:]]))], dim=1)
        return logits[0], tokens


def _part(part: str | Picture) -> dict[str, str]:
    return {"type": "image"} if isinstance(part, Picture) else {"type": "text", "text": part}


def main(folder: Path) -> None:
    """Write the checkpoints in both layouts, and what transformers makes of each conversation."""
    torch.set_num_threads(1)
    for name, shape in SHAPES.items():
        native = make_phi4(folder / name / "native", "native", **shape)
        make_phi4(folder / name / "published", "published", **shape)
        reference = Reference(native)
        for title, turns in CONVERSATIONS.items():
            np.savez(folder / name / f"{title}.npz", **reference.answer(turns))
        print(f"reference: {name}", flush=True)  # noqa: T201  # progress


if __name__ == "__main__":
    main(Path(sys.argv[1]))
