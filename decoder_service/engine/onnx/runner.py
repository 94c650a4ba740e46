"""The graphs on ONNX Runtime, over one cache of keys and values.

A slot's row is bound as past and as present at once, so ONNX Runtime writes new keys and values in place and copies
nothing. A run computes a token of each of several answers, which lie in neighbouring rows, each of its own length; or
a chunk of a prompt in a row of its own; or both, and then reads the weights once (see `packing`). The number of ones
in a row of a mask is its length. `GroupQueryAttention` of ONNX Runtime 1.32 refuses to read several prompts at once
behind a past, so there is one chunk in a run. A graph may be in parts, between which others can run (see `parts`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from decoder_service.engine.model import Piece, Shape, Step
from decoder_service.engine.onnx.operators import is_rounded, multiplies_all, substitute
from decoder_service.engine.onnx.packing import CHUNK, LOGITS_INDICES, pack
from decoder_service.engine.onnx.pages import let_go
from decoder_service.engine.onnx.parts import cut
from serving.cores import lacks_vnni


class Runner:
    """Computes on any of its graphs.

    Args:
        embedding: Path of the graph that turns ids and features into embeddings.
        threads: Threads for one operator.
        layers: Layers of the model.
        head_size: Width of an attention head.
        operators: The library of our own operators, for graphs with rounded weights; without one, ONNX Runtime's are
            used.
        repack: Whether ONNX Runtime may copy float32 weights into an order that it multiplies faster. Otherwise they
            stay in the mapped file.
    """

    def __init__(
        self,
        embedding: Path,
        *,
        threads: int,
        layers: int,
        head_size: int,
        operators: Path | None = None,
        repack: bool = True,
    ) -> None:
        self._repack = repack
        self._threads = threads
        self._head_size = head_size
        self._operators = operators
        self._embedding = onnxruntime.InferenceSession(embedding, _options(1), _PROVIDERS)
        self._feature_width = int(self._embedding.get_outputs()[0].shape[-1])
        self._layers = layers
        self._tensors = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
        self._parts: dict[str, list[_Part]] = {}
        self._buffers: Sequence[NDArray[Any]] = ()

    def load(self, name: str, path: Path, *, layers_at_once: int | None = None) -> None:
        """Load a graph. All have the same inputs, outputs and cache; the first one says what they are.

        Args:
            name: What it is called from here on.
            path: Its file.
            layers_at_once: Layers in a part; None: all of it is one part.
        """
        model = onnx.load(path, load_external_data=False)
        ours = (
            self._operators is not None
            and is_rounded(model)
            and substitute(model, head_size=self._head_size, threads=self._threads) > 0
        )
        options = _options(1 if ours and multiplies_all(model) else self._threads)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        if not self._repack and not is_rounded(model):
            options.add_session_config_entry("session.disable_prepacking", "1")
        if ours:
            options.register_custom_ops_library(str(self._operators))
        pack(model.graph)
        models = [model] if layers_at_once is None else cut(model, layers=self._layers, each=layers_at_once)
        if len(models) > 1:  # they run one after the other, and need no more memory than one
            _share_an_arena()
            options.add_session_config_entry("session.use_env_allocators", "1")
        self._parts[name] = [
            _Part(onnxruntime.InferenceSession(each.SerializeToString(), options, _PROVIDERS)) for each in models
        ]
        data = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
        for file in {entry.value for entry in data if entry.key == "location"}:
            let_go(path.parent / file)
        if len(self._parts) > 1:
            return
        inputs = {value.name: value for value in model.graph.input}
        kind = inputs[f"past_key_values.{self._tensors[0]}"].type.tensor_type.elem_type
        self.cache_dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
        logits = next(value for value in model.graph.output if value.name == "logits")
        self.shape = Shape(
            vocabulary=logits.type.tensor_type.shape.dim[-1].dim_value,
            feature_width=self._feature_width,
            axes=inputs["position_ids"].type.tensor_type.shape.dim[0].dim_value,
        )

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs."""
        return tuple(self._parts)

    def parts(self, graph: str) -> int:
        """In how many parts a graph is."""
        return len(self._parts[graph])

    def use(self, buffers: Sequence[NDArray[Any]]) -> None:
        """Bind the graphs to a cache of keys and values: for each layer those two, [rows, heads, length, width]."""
        self._buffers = buffers
        for part in itertools.chain.from_iterable(self._parts.values()):
            part.forget()

    def run(self, graph: str, *, step: Step | None = None, piece: Piece | None = None) -> NDArray[np.float32]:
        """Compute a step of answers, a chunk, or both in one run; see `Model.decode`."""
        *_, logits = self.run_by_parts(graph, step=step, piece=piece)
        assert logits is not None  # noqa: S101  # the last part is the head
        return logits

    def run_by_parts(
        self, graph: str, *, step: Step | None = None, piece: Piece | None = None, head: bool = True
    ) -> Iterator[NDArray[np.float32] | None]:
        """Compute the same a part at a time, each when the next value is asked for.

        Args:
            graph: Which.
            step: A token of each of several answers.
            piece: A chunk.
            head: Whether the logits are wanted; without them, a part less is computed where there are several.

        Yields:
            None after each part, and the logits after the head.
        """
        answers = step.lengths.size if step is not None else 0
        size = piece.token_ids.size if piece is not None else 0
        # All tokens lie in one row, but for answers that are alone, of which each has its own. A chunk has the second
        # cache, also when it is alone: by that our attention tells it from answers.
        layout = (1, answers + size) if size else (answers, 1)
        wanted = [*range(answers), *([answers + size - 1] if size else [])]
        logits = np.empty((len(wanted), 1, self.shape.vocabulary), np.float32)
        (mask, rows), (chunk_mask, chunk_rows) = _rows(step), _rows(piece)
        given: dict[str, NDArray[Any]] = {
            "inputs_embeds": self._embed(step, piece).reshape(*layout, -1),
            "position_ids": self._positions(step, piece).reshape(self.shape.axes, *layout),
            "attention_mask": mask,
            f"{CHUNK}attention_mask": chunk_mask,
            LOGITS_INDICES: np.array(wanted, np.int64),
        }
        between: dict[str, Any] = {}
        parts = self._parts[graph]
        for index, part in enumerate(parts):
            last = index + 1 == len(parts)
            if last and not head and index:
                return
            self._bind_cache(part, "", rows)
            self._bind_cache(part, CHUNK, chunk_rows)
            part.run(given, logits, between)
            yield logits[:, 0] if last else None

    def _embed(self, step: Step | None, piece: Piece | None) -> NDArray[np.float32]:
        """Embeddings of all tokens, the answers' first: [1, n, width]."""
        parts = []
        if step is not None:
            # The ids of an answer are text, also where the model draws a media token: there are no features for it.
            parts.append((step.token_ids, np.empty((0, self._feature_width), np.float32)))
        if piece is not None:
            parts.append((piece.token_ids, piece.features))
        feeds = [{"input_ids": ids[None].astype(np.int64), "image_features": rows} for ids, rows in parts]
        found = [self._embedding.run(["inputs_embeds"], feed)[0] for feed in feeds]
        return np.concatenate(found, 1) if len(found) > 1 else np.asarray(found[0])

    def _positions(self, step: Step | None, piece: Piece | None) -> NDArray[np.int64]:
        """Positions of all tokens, the answers' first: [axes, n]."""
        axes = self.shape.axes
        answers = step.positions if step is not None else np.empty(0, np.int64)
        chunk = piece.positions if piece is not None else np.empty((axes, 0), np.int64)
        positions = np.empty((axes, answers.size + chunk.shape[1]), np.int64)
        positions[:, : answers.size], positions[:, answers.size :] = answers, chunk
        return positions

    def _bind_cache(self, part: _Part, prefix: str, rows: slice) -> None:
        """Bind rows as past and as present, unless they are: that is 144 calls for 36 layers."""
        if part.rows.get(prefix) == rows:
            return
        for tensor, buffer in zip(self._tensors, self._buffers, strict=True):
            past = f"{prefix}past_key_values.{tensor}"
            if past in part.inputs:
                _bind(part.binding.bind_input, past, buffer[rows])
                _bind(part.binding.bind_output, f"{prefix}present.{tensor}", buffer[rows])
        part.rows[prefix] = rows


class _Part:
    """A graph, or a part of one.

    Attributes:
        inputs: Names of its inputs.
        binding: Its inputs and outputs.
        rows: To which rows of the cache its keys and values are bound, by prefix.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.inputs = {value.name for value in session.get_inputs()}
        outputs = [value.name for value in session.get_outputs()]
        self._logits = "logits" in outputs
        self._handed = [name for name in outputs if name != "logits" and "present." not in name]
        self.forget()

    def forget(self) -> None:
        """Bind nothing."""
        self.binding: Any = self._session.io_binding()
        self.rows: dict[str, slice] = {}
        self._bind_handed()  # first of all: outputs are given in the order in which they were bound

    def _bind_handed(self) -> None:
        """Let each be allocated anew."""
        for name in self._handed:
            self.binding.bind_output(name)

    def run(self, given: Mapping[str, NDArray[Any]], logits: NDArray[np.float32], between: dict[str, Any]) -> None:
        """Compute.

        Args:
            given: The whole graph's inputs but the cache, which is bound.
            logits: Where the logits go.
            between: What parts before this one have handed on; what this one hands on is added.
        """
        for name, value in given.items():
            if name in self.inputs:
                _bind(self.binding.bind_input, name, value)
        for name in self.inputs & between.keys():
            self.binding.bind_ortvalue_input(name, between[name])
        self._bind_handed()
        if self._logits:
            _bind(self.binding.bind_output, "logits", logits)
        self._session.run_with_iobinding(self.binding)
        if self._handed:
            between.update(zip(self._handed, self.binding.get_outputs(), strict=False))


def _rows(part: Step | Piece | None) -> tuple[NDArray[np.int64], slice]:
    """The mask of a part, as long as each row will be, and the rows of the cache that it lies in."""
    match part:
        case Step():
            first = part.first_slot
            mask = (np.arange(int(part.lengths.max()) + 1) <= part.lengths[:, None]).astype(np.int64)
        case Piece():
            first = part.slot
            mask = np.ones((1, part.start + part.token_ids.size), np.int64)
        case None:
            return np.empty((0, 1), np.int64), slice(0, 0)
    return mask, slice(first, first + len(mask))


_PROVIDERS = ["CPUExecutionProvider"]


@functools.cache
def _share_an_arena() -> None:
    """Make the memory that sessions may share. It is this process's, and cannot be made twice."""
    cpu = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(cpu, None)


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Each session has threads of its own, which would go on spinning after a run, in the way of another session's.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if lacks_vnni():
        # An exact way to multiply bytes. With VNNI every way is exact, and this one slower.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _bind(bind: Any, name: str, array: NDArray[Any]) -> None:
    """Bind an array's own memory, which the caller keeps alive."""
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
