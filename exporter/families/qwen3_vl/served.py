"""Whether the services can serve a checkpoint: their own code is asked, before any long work."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from decoder_service.chat import MediaKind, Medium, Message, Role, Text
from decoder_service.families.qwen3_vl.prompt_layout import Qwen3VL
from decoder_service.request.prompt import PromptBuilder
from exporter.errors import ExportError, ExportProblem, one_line
from exporter.progress import quiet
from serving.bundle import BundleError, TokenIds
from serving.families import VisionInfo
from vision_service.families.qwen3_vl.settings import settings_of

from .checkpoint import Checkpoint
from .description import describe


def check_served(checkpoint: Checkpoint) -> None:
    """Check that the vision service takes the preprocessor settings and the decoder service the chat template.

    Raises:
        ExportError: one of them is refused.
    """
    said = describe(checkpoint)
    vision, tokens = VisionInfo(**said["vision"]), TokenIds(**said["tokens"])
    try:
        image, video = (_file(checkpoint.root, name) for name in ("preprocessor", "video_preprocessor"))
        settings_of("image", checkpoint.image_processor, image, vision)
        settings_of("video", checkpoint.video_processor, video, vision)
    except BundleError as error:
        raise ExportError(ExportProblem.PREPROCESSOR_UNSUPPORTED, error=str(error).rstrip(".")) from error
    picture = Medium(MediaKind.IMAGE, "sha256:")
    film = Medium(MediaKind.VIDEO, "sha256:")
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(checkpoint.root, local_files_only=True)  # type: ignore[assignment]  # checkpoints have no others
            tokenizer.chat_template = checkpoint.chat_template
            prompts = PromptBuilder(tokenizer, Qwen3VL(tokens, merge_size=vision.spatial_merge_size))
            for shown in (picture, film):
                question = Message(Role.USER, (shown, Text("What is it?")))
                prompts.render([question, Message(Role.ASSISTANT, (Text("A cat."),)), question])
    except Exception as error:  # a template is a program: it may raise anything
        raise ExportError(ExportProblem.TEMPLATE_FAILS, root=checkpoint.root, error=one_line(error)) from error


def _file(root: Path, name: str) -> Path:
    """Where one medium's settings were read."""
    own = root / f"{name}_config.json"
    return own if own.is_file() else root / "processor_config.json"
