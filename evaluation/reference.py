"""What a bundle is compared with: transformers in float32 on a checkpoint, or the float32 graph of a bundle."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer

from evaluation.errors import EvaluationError
from evaluation.prompts import Laid, features_of
from evaluation.shelf import Kept, Shelf
from exporter.divergence import Asked, Graph
from exporter.errors import ExportError, one_line
from exporter.families.registry import open_checkpoint
from exporter.measuring import available_memory
from exporter.source import locate
from serving.bundle import MANIFEST, Bundle

_TOKENIZER = "tokenizer.json"
_ROOM = 1 << 30  # what transformers takes beside its weights, for prompts of a thousand tokens

Advance = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Answered:
    """A reference's greedy answer.

    Attributes:
        tokens: [n], without the one that ends it.
        logits: before each of the tokens and after the last [n + 1, vocabulary].
    """

    tokens: Sequence[int]
    logits: Kept


class Reference(Protocol):
    """Answers prompts in float32."""

    @property
    def title(self) -> str:
        """What it is, for people."""

    def answers(self, laid: Sequence[Laid], steps: int, shelf: Shelf, advance: Advance) -> Iterator[Answered]:
        """Answer each prompt greedily.

        Args:
            laid: the prompts.
            steps: most tokens of an answer.
            shelf: keeps what is large.
            advance: called with 1 for each prompt that is done.
        """


def open_reference(source: str, bundle: Bundle, *, show_progress: bool = False) -> Reference:
    """The reference that a path or a Hugging Face id names.

    Args:
        source: a bundle's directory, a checkpoint's directory, or an id.
        bundle: what is to be compared with it.
        show_progress: show bars of a download.

    Raises:
        EvaluationError: there is none, it is of another model, or it does not fit into memory.
        BundleError: it is a bundle that cannot be opened.
    """
    path = Path(source).expanduser()
    if (path / MANIFEST).exists():
        reference = Bundle.open(path)
        if "fp32" not in reference.decoder.graphs:
            raise EvaluationError(
                f"{path} holds {reference.decoder.precision}: a reference is a checkpoint, or a bundle that was "
                "exported with --precision fp32"
            )
        _check_tokens(bundle, path, reference.decoder_dir, reference.text.vocab_size)
        return BundleReference(reference)
    if bundle.decoder.adapter is not None:
        raise EvaluationError(
            f"transformers does not use the adapter of {source} by itself: name a bundle of it that was exported with "
            "--precision fp32"
        )
    try:
        found = locate(source, revision=None, show_progress=show_progress)
        found.fetch_settings()
        found.fetch_weights()
        checkpoint = open_checkpoint(found.root)
    except ExportError as error:
        raise EvaluationError(str(error)) from error
    _check_tokens(bundle, checkpoint.root, checkpoint.root, checkpoint.describe()["text"]["vocab_size"])
    needed, available = 4 * checkpoint.parameters + _ROOM, available_memory()
    if available is not None and available < needed:
        raise EvaluationError(
            f"transformers takes {needed / 2**30:.1f} GiB of memory for {checkpoint.root} in float32, and "
            f"{available / 2**30:.1f} are available: name a bundle of it that was exported with --precision fp32, "
            "whose weights stay on the disk"
        )
    return TransformersReference(checkpoint.root, bundle)


class TransformersReference:
    """transformers in float32: its own encoder, positions and language model, on the bundle's ids and patches.

    Args:
        checkpoint: its directory.
        bundle: whose control tokens end answers.
    """

    def __init__(self, checkpoint: Path, bundle: Bundle) -> None:
        self._checkpoint = checkpoint
        self._bundle = bundle

    @property
    def title(self) -> str:
        """What it is, for people."""
        return f"transformers in float32 on {self._checkpoint}"

    def answers(self, laid: Sequence[Laid], steps: int, shelf: Shelf, advance: Advance) -> Iterator[Answered]:
        """See `Reference`. The model is in memory from the first answer to the last."""
        try:
            model: Any = self._loader.from_pretrained(self._checkpoint, dtype=torch.float32, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise EvaluationError(f"transformers cannot load {self._checkpoint}: {one_line(error)}") from error
        model.eval()
        config: Any = transformers.GenerationConfig
        model.generation_config = config()  # the checkpoint's own would sample, and punish repetitions
        greedy = config(
            max_new_tokens=steps + 1,
            do_sample=False,
            eos_token_id=list(self._bundle.tokens.eos),
            pad_token_id=self._bundle.tokens.eos[0],
            return_dict_in_generate=True,
            output_logits=True,
        )
        for one in laid:
            ids = torch.tensor([one.prompt.token_ids])
            with torch.inference_mode():
                out = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=greedy,
                    **self._of_media(one, ids),
                )
            logits = torch.stack([step[0] for step in out.logits]).float().numpy()
            yield Answered(out.sequences[0, ids.shape[1] : -1].tolist(), shelf.put(logits))
            advance(1)
        del model
        gc.collect()

    @property
    def _loader(self) -> Any:
        takes_media = self._bundle.has_encoder
        return transformers.AutoModelForImageTextToText if takes_media else transformers.AutoModelForCausalLM

    def _of_media(self, laid: Laid, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arguments of models that take media."""
        if not self._bundle.has_encoder:
            return {}
        return {"mm_token_type_ids": (ids == self._bundle.media_tokens.image).int(), **_pictures(laid)}


class BundleReference:
    """The float32 graph of a bundle behind its encoder in float32. Its weights are read from their file as needed.

    Args:
        bundle: exported at fp32.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    @property
    def title(self) -> str:
        """What it is, for people."""
        return f"the float32 graph of {self._bundle.root}"

    def answers(self, laid: Sequence[Laid], steps: int, shelf: Shelf, advance: Advance) -> Iterator[Answered]:
        """See `Reference`."""
        features = [shelf.put(rows) for rows in features_of(self._bundle, laid, "float32")]
        graph = Graph(self._bundle, "fp32", length=longest(laid) + steps + 1, repack=False)
        for one, rows in zip(laid, features, strict=True):
            tokens, logits = graph.greedy(Asked(one.prompt, rows.read()), steps, stop=self._bundle.tokens.eos)
            yield Answered(tokens, shelf.put(logits))
            advance(1)
        del graph
        gc.collect()


def longest(laid: Sequence[Laid]) -> int:
    """Tokens of the longest prompt."""
    return max(len(one.prompt.token_ids) for one in laid)


def _pictures(laid: Laid) -> dict[str, torch.Tensor]:
    """A prompt's pictures as transformers' models take them."""
    if not laid.media:
        return {}
    return {
        "pixel_values": torch.from_numpy(np.concatenate([medium.pixel_values() for medium in laid.media])),
        "image_grid_thw": torch.tensor([medium.grid for medium in laid.media]),
    }


def _check_tokens(bundle: Bundle, path: Path, folder: Path, vocabulary: int) -> None:
    """Raise where a reference speaks of other tokens than the bundle."""
    same = vocabulary == bundle.text.vocab_size and _vocabulary(folder) == _vocabulary(bundle.decoder_dir)
    if not same:
        raise EvaluationError(
            f"{path} has another vocabulary than {bundle.root}: name the checkpoint that the bundle was exported from"
        )


def _vocabulary(folder: Path) -> dict[str, int]:
    try:
        return Tokenizer.from_file(str(folder / _TOKENIZER)).get_vocab()
    except Exception as error:  # tokenizers raises nothing narrower
        raise EvaluationError(f"{folder / _TOKENIZER} cannot be read: {error}") from error
