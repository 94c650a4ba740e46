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

from .checkpoint import Checkpoint
from .description import describe


def check_served(checkpoint: Checkpoint) -> None:
    """Check that the vision service takes the preprocessor settings and the decoder service the chat template.

    Raises:
        ExportError: one of them is refused.
    """
    bundle = _draft(checkpoint)
    settings_of = checkpoint.variant.settings
    try:
        image, video = (_file(checkpoint.root, name) for name in ("preprocessor", "video_preprocessor"))
        settings_of("image", checkpoint.image_processor, image, bundle.vision)
        settings_of("video", checkpoint.video_processor, video, bundle.vision)
    except BundleError as error:
        raise ExportError(ExportProblem.PREPROCESSOR_UNSUPPORTED, error=str(error).rstrip(".")) from error
    picture = Medium(MediaKind.IMAGE, "sha256:")
    film = Medium(MediaKind.VIDEO, "sha256:")
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(checkpoint.root, local_files_only=True)  # type: ignore[assignment]  # checkpoints have no others
            tokenizer.chat_template = checkpoint.chat_template
            prompts = PromptBuilder(tokenizer, family_of(bundle))
            for shown in (picture, film):
                question = Message(Role.USER, (shown, Text("What is it?")))
                prompts.render([question, Message(Role.ASSISTANT, (Text("A cat."),)), question])
    except Exception as error:  # a template is a program: it may raise anything
        raise ExportError(ExportProblem.TEMPLATE_FAILS, root=checkpoint.root, error=one_line(error)) from error


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
