"""The error messages of exports and bundles, read from the code, with their remedies."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.docs.tables import table

_ROOT = Path(__file__).parents[2]

EXPORT: Mapping[str, str] = {
    "There is no precision": "Python only; the command line offers no other.",
    "has no phases": "They are the two graphs of an INT4 bundle.",
    "has nothing to calibrate": "Calibration is for rounding, and fp32 does not round.",
    "to calibrate on: name": "A typing mistake in `--calibrate DIR`.",
    "holds nothing to calibrate on": "It is the wrong directory, or its pictures are of other types.",
    "cannot be laid out": "The chat template does not take a user's message with a picture and an answer to it.",
    "is not a prompt: write it as": "An entry is missing, misspelt or not a string, or the line is not JSON.",
    "write it in UTF-8": "`prompts.jsonl` is in another encoding, or may not be read.",
    "add it, or take it out of": "`prompts.jsonl` names a file that is not in the directory.",
    "replace it, or take it out": "The picture of the calibration data is damaged or too large.",
    "There are no phases": "Python only; the command line has its own message. INT4 cannot be left out.",
    "There is no recipe": "Python only; the command line offers no other.",
    "There is no block size": "32 is the default. Smaller blocks are more accurate and larger.",
    "There is no accuracy level": "4 is the default. 1 is slower and computes in float32.",
    "There is no directory …: name": "A typing error, or an id without its owner.",
    "is a file: name the checkpoint's": "Name the directory, not the weights in it.",
    "gives … only to accounts": "Once for each account.",
    "has no revision": "Look at the branches and tags on the model's page.",
    "and no model … on Hugging Face": "A typing error, or a model that needs an account.",
    "could not be reached": "Copy the checkpoint from a machine that can reach it and name its directory.",
    "could not be stored in Hugging Face's cache": "The download needs space for the whole checkpoint.",
    "The checkpoint … has no …: download it again": "A file of the checkpoint was not copied.",
    "cannot be read (…): download it again.": "The file is damaged or is not JSON.",
    "does not hold a JSON object": "The file is damaged.",
    "holds …: only": "Mixture-of-experts models, Qwen2.5-VL and other families are not supported.",
    "is quantized already": "Take the repository without AWQ, GPTQ, FP8 or the like in its name.",
    "is not a valid Qwen3-VL config": "Compare it with the config of the model that yours was made from.",
    "the encoder gives features of width": "Encoder and language model differ in size: two checkpoints were mixed.",
    "lies outside the vocabulary": "The vocabulary was cut, or the config is of another model.",
    "rotary embeddings: only": "YaRN and the like: remove it from the config and stay within the original context.",
    "does not divide half of head_dim": "Compare `mrope_section` and `head_dim` with the original config.",
    "has no tokenizer.json": "Copy it from the model that yours was made from.",
    "is not a readable tokenizer": "The file is damaged, or was written by a newer version of tokenizers.",
    "has no chat template": "Base models have none. See also [troubleshooting](troubleshooting.md#gibberish).",
    "has no preprocessor_config.json": "Copy it from the model that yours was made from.",
    "does not say which token ends": "Copy `generation_config.json` from the model that yours was made from.",
    "cannot be built": "The graph builder does not support something in the config; the rest of the message names it.",
    "has no weights": "`.bin` checkpoints: save them again with transformers, which writes safetensors.",
    "cannot be read (…): download the checkpoint again": "`model.safetensors.index.json` is damaged.",
    "its index lists": "A shard was not copied.",
    "is not a readable safetensors file": "The download is incomplete, or it is a Git LFS pointer.",
    "is truncated": "The download is incomplete.",
    "ended early while it was read": "Wait until the training run or the copy has finished.",
    "lacks …": "Merge adapters (LoRA) into the model first; remove prefixes that a trainer added.",
    "the config and the weights are not of the same model": "Two checkpoints were mixed, or the vocabulary resized.",
    "is stored as": "FP8 and integer weights are refused.",
    "is a file or a link": "The bundle is a directory.",
    "has other files in it": "Only bundles are replaced.",
    "holds a bundle already": "The old one stays until the new one is complete.",
    "The bundle needs about": "Checked before any long work.",
    "The disk became full": "Something else wrote to the same disk.",
    "could not be written, and nothing was kept": "Permissions, or a failing disk: see the rest of the message.",
}
"""Remedies, by words of the message."""

OPENING: Mapping[str, str] = {
    "There is no bundle at": "A typing error, or the mount is missing in the container.",
    "is not a bundle, or only a part of one": "The copy is incomplete, or it is the checkpoint.",
    "cannot be read (…).": "Permissions: the service's user may not read it.",
    "cannot be read (…): export the bundle again.": "The file is damaged or was edited.",
    "does not describe a Triptych bundle": "It is a `bundle.json` of another program.",
    "has bundle format": "The bundle and the service have different versions.",
    "is not valid": "`bundle.json` was edited.",
    "is incomplete, … is missing": "The copy is incomplete.",
    "is not among its files": "`bundle.json` was edited.",
    "has … bytes instead of": "The copy is incomplete.",
    "does not match its digest": "Only with `--verify`, which reads every byte.",
    "names a file outside": "The bundle was manipulated: do not use it.",
    "has no … graph": "Export with that precision.",
    "are not those of its config.json": "The files belong to two models.",
    "gives features": "The files belong to two models.",
    "The encoder in … cannot be served": "Its config has an activation that Triptych does not support.",
    "for which the vision service encodes": "The service is older than the exporter, or the family has no media.",
    "where only … can be served": "Triptych does not support these preprocessor settings.",
}
"""Remedies for messages about bundles."""


def of_export() -> list[str]:
    """The error messages of `exporter`."""
    return _messages("ExportError", ("exporter",))


def of_opening() -> list[str]:
    """The error messages of the services about a bundle."""
    return _messages("BundleError", ("serving", "vision_service", "decoder_service"))


def export_errors() -> str:
    """The table for `triptych export`."""
    return table(("Message", "What to do"), [(sentence, _help(sentence, EXPORT)) for sentence in of_export()])


def bundle_errors() -> str:
    """The table for bundles."""
    return table(("Message", "What to do"), [(sentence, _help(sentence, OPENING)) for sentence in of_opening()])


def keys(sentence: str, advice: Mapping[str, str]) -> list[str]:
    """The keys of `advice` that are in a message."""
    return [key for key in advice if key in sentence]


def _help(sentence: str, advice: Mapping[str, str]) -> str:
    return " ".join(advice[key] for key in keys(sentence, advice))


def _messages(error: str, packages: Sequence[str]) -> list[str]:
    """The messages of an exception, with `…` for inserted values; each once, in the order of the files."""
    sentences = [
        _text(call.args[0])
        for package in packages
        for path in sorted((_ROOT / package).rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == error and call.args
    ]
    return list(dict.fromkeys(sentences))


def _text(sentence: ast.expr) -> str:
    match sentence:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
    return ast.unparse(sentence)
