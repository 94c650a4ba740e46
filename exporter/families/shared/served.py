"""Whether the services can serve a checkpoint: their own code is asked, before any long work."""

from pathlib import Path

from pydantic import ValidationError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from decoder_service.chat import MediaKind, Medium, Message, Role, Text
from decoder_service.families.registry import family_of
from decoder_service.request.prompt import PromptBuilder
from exporter.errors import ExportError, ExportProblem, one_line
from exporter.progress import quiet
from serving.bundle import Bundle, BundleError
from vision_service.media import Kind

from .checkpoint import Checkpoint
from .description import describe
from .variant import EncoderVariant


def check_served(checkpoint: Checkpoint) -> None:
    """Check that the vision service takes the preprocessor settings and the decoder service the chat template.

    Raises:
        ExportError: one of them is refused.
    """
    bundle = _draft(checkpoint)
    shown: tuple[tuple[Medium, ...], ...] = ((),)
    if checkpoint.variant.encoder is not None:
        _check_settings(checkpoint, checkpoint.variant.encoder, bundle)
        shown = tuple((Medium(MediaKind(kind), "sha256:"),) for kind in checkpoint.processors)
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(  # type: ignore[assignment]  # checkpoints have no others
                checkpoint.root, config=checkpoint.config, local_files_only=True
            )
            tokenizer.chat_template = checkpoint.chat_template
            prompts = PromptBuilder(tokenizer, family_of(bundle))
            for media in shown:
                question = Message(Role.USER, (*media, Text("What is it?")))
                prompts.render([question, Message(Role.ASSISTANT, (Text("A cat."),)), question])
    except Exception as error:  # a template is a program: it may raise anything
        raise ExportError(ExportProblem.TEMPLATE_FAILS, root=checkpoint.root, error=one_line(error)) from error


def _check_settings(checkpoint: Checkpoint, encoder: EncoderVariant, bundle: Bundle) -> None:
    files: dict[Kind, str] = {"image": "preprocessor", "video": "video_preprocessor"}
    try:
        for kind, settings in checkpoint.processors.items():
            encoder.settings(kind, settings, _file(checkpoint.root, files[kind]), bundle.vision)
    except BundleError as error:
        raise ExportError(ExportProblem.PREPROCESSOR_UNSUPPORTED, error=str(error).rstrip(".")) from error


def _draft(checkpoint: Checkpoint) -> Bundle:
    """The bundle that will be made, as far as it is known before the work.

    Raises:
        ExportError: the config has a value that no bundle can hold.
    """
    model = {"id": "draft", "family": checkpoint.variant.name, "parameters": checkpoint.parameters}
    try:
        return Bundle.unfinished(
            checkpoint.root, {"model": model, **describe(checkpoint), "encoder_fingerprint": "0" * 64}
        )
    except ValidationError as error:
        raise ExportError(
            ExportProblem.CONFIG_INVALID,
            config=checkpoint.root / "config.json",
            model=checkpoint.variant.label,
            error=one_line(error),
        ) from error


def _file(root: Path, name: str) -> Path:
    """Where one medium's settings were read."""
    own = root / f"{name}_config.json"
    return own if own.is_file() else root / "processor_config.json"
