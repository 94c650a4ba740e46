"""The two small graphs around the decoder: the embedding merge, and the identity that stands for the encoder."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper, numpy_helper

from exporter.progress import Progress
from exporter.spool import Spool

from .checkpoint import EMBEDDING, Checkpoint
from .genai import EMBEDDING_GRAPH, VISION_GRAPH, media_ids

_ROWS = 8_192  # table rows converted at a time
_OPSET = 17
_IR_VERSION = 10


def write_embedding(checkpoint: Checkpoint, folder: Path, *, half: bool, progress: Progress) -> None:
    """Write `folder`/embedding.onnx: token rows padded with zeros, the features laid over the media positions.

    input_ids int64 [batch, sequence] and image_features float32 [n, (1 + L) · hidden] give inputs_embeds float32
    [batch, sequence, (1 + L) · hidden]; n is the number of image and video tokens in input_ids, or 0.

    Args:
        checkpoint: where the table comes from.
        folder: the decoder's directory.
        half: keep the table in float16 instead of float32 (the graph's output is float32 either way).
        progress: shows a bar.
    """
    width = checkpoint.feature_width
    image, video, _ = media_ids(checkpoint)
    hidden = checkpoint.text.hidden_size
    constants = {
        "zero": np.array([0], np.int64),
        "no_limit": np.array([np.iinfo(np.int64).max], np.int64),
        "image_token": np.int64(image),
        "video_token": np.int64(video),
        "zeros_after": np.array([0, 0, 0, 0, 0, width - hidden], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "input_ids"], ["rows"]),
        node("Cast", ["rows"], ["rows_float"], to=TensorProto.FLOAT),
        node("Pad", ["rows_float", "zeros_after"], ["wide"]),
        node("Equal", ["input_ids", "image_token"], ["is_image"]),
        node("Equal", ["input_ids", "video_token"], ["is_video"]),
        node("Or", ["is_image", "is_video"], ["is_media"]),
        node("NonZero", ["is_media"], ["media_axes_first"]),
        node("Transpose", ["media_axes_first"], ["media_positions"], perm=[1, 0]),
        # Without features nothing is overwritten: a placeholder that the model itself wrote is a token like any
        # other. With them, ScatterND fails unless there is one row for each placeholder.
        node("Shape", ["image_features"], ["feature_count"], end=1),
        node("Greater", ["feature_count", "zero"], ["has_features"]),
        node("Where", ["has_features", "no_limit", "zero"], ["limit"]),
        node("Slice", ["media_positions", "zero", "limit", "zero"], ["written_positions"]),
        node("ScatterND", ["wide", "written_positions", "image_features"], ["inputs_embeds"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "embedding",
        inputs=[
            value("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
            value("image_features", TensorProto.FLOAT, ["num_image_tokens", width]),
        ],
        outputs=[value("inputs_embeds", TensorProto.FLOAT, ["batch_size", "sequence_length", width])],
        initializer=[
            _write_table(checkpoint, folder / EMBEDDING_GRAPH, half=half, progress=progress),
            *(numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()),
        ],
    )
    onnx.save(_model(graph), folder / EMBEDDING_GRAPH)


def _write_table(checkpoint: Checkpoint, graph: Path, *, half: bool, progress: Progress) -> onnx.TensorProto:
    """Write the token table beside `graph` and return the initializer that refers to it."""
    table = checkpoint.tensors[EMBEDDING]
    dtype = torch.float16 if half else torch.float32

    def chunks() -> Iterator[bytes]:
        for start in range(0, table.shape[0], _ROWS):
            yield table.read(slice(start, start + _ROWS)).to(dtype).numpy().tobytes()

    total = table.shape[0] * table.shape[1] * dtype.itemsize
    onnx_dtype = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
    with progress.bar("embedding", total=total, unit="B") as advance, Spool(graph, advance) as spool:
        return ir.to_proto(spool.add_chunks("table", onnx_dtype, table.shape, chunks()))


def write_identity_vision(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `folder`/vision.onnx: pixel_values float32 [n, (1 + L) · hidden] come out as image_features."""
    shape: list[str | int | None] = ["num_image_tokens", checkpoint.feature_width]
    graph = helper.make_graph(
        nodes=[helper.make_node("Identity", ["pixel_values"], ["image_features"])],
        name="vision",
        inputs=[helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, shape)],
        outputs=[helper.make_tensor_value_info("image_features", TensorProto.FLOAT, shape)],
    )
    onnx.save(_model(graph), folder / VISION_GRAPH)


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION, producer_name="triptych"
    )
