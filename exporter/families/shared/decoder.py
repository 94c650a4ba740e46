"""The decoder's graphs: one for each precision that a bundle holds, all with the same inputs, outputs and KV cache."""

import copy
from pathlib import Path

import onnx_ir as ir
import torch

from exporter.calibrated import Plan
from exporter.errors import ExportError, ExportProblem
from exporter.precision import Phase, Precision
from exporter.progress import Progress, quiet
from exporter.recipe import Recipe
from exporter.spool import Spool

from .checkpoint import Checkpoint
from .int8 import Int8Decoder
from .wide import WideDecoder, of_family


def write_decoder(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    precision: Precision | Phase,
    block_size: int,
    accuracy_level: int,
    recipe: Recipe,
    smooth: bool,
    plan: Plan | None,
    progress: Progress,
) -> Path:
    """Write `folder`/{precision}/model.onnx with its data; unless it is INT8, also `folder`/genai_config.json.

    Returns:
        The graph's path.
    """
    graph = folder / precision / "model.onnx"
    graph.parent.mkdir(parents=True)
    layers = checkpoint.text.num_hidden_layers
    options = {
        "exclude_embeds": True,
        "prune_lm_head": True,  # logits of the last position alone: the largest matmul of a prefill is saved
        "shared_embeddings": False,
        "block_size": block_size,
        "accuracy_level": accuracy_level,
        "filename": graph.relative_to(folder).as_posix(),
        "hf_token": False,
    }
    config = copy.deepcopy(checkpoint.config)  # the builder writes into it
    config._name_or_path = str(checkpoint.root)  # where the builder finds tokenizer and settings
    kind = of_family(Int8Decoder if precision == "int8" else WideDecoder, checkpoint.variant)
    weight_type = ir.DataType.INT4 if precision == "int4" else ir.DataType.FLOAT
    with (
        progress.bar(f"decoder {precision}", total=layers + 1, unit="layers") as advance,
        Spool(graph) as spool,
        quiet(),
        torch.no_grad(),
    ):
        try:
            model = kind(
                config,
                weight_type,
                options,
                checkpoint=checkpoint,
                spool=spool,
                recipe=recipe,
                graph=precision,
                smooth=smooth,
                plan=plan,
                advance=advance,
            )
            model.make_model(str(checkpoint.root))
            model.save_model(str(folder))
            # The library runs the bundle's own precision.
            if precision != "int8" and checkpoint.variant.genai_type is not None:
                model.make_genai_config(config, {}, str(folder))
        except NotImplementedError as error:
            raise ExportError(ExportProblem.GRAPH_UNSUPPORTED, root=checkpoint.root, error=error) from error
    return graph
