"""Runs the graphs on ONNX Runtime, over one KV cache.

A slot is bound as past and as present at once, so ONNX Runtime writes new keys and values in place and copies nothing.
A run decodes one token for each of several requests, in adjacent slots and each of its own length; or prefills a chunk
of a prompt in its own slot; or both, and then reads the weights once (see `packing`). The number of ones in a row of a
mask is the length of the slot. `GroupQueryAttention` of ONNX Runtime 1.32 does not accept several prompts with a past
in one run, so there is one chunk in a run. A graph can be loaded in parts, between which others can run (see `parts`).
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

from decoder_service.engine.model import ADAPTER_TOKENS, LONGEST_SHORT, Piece, Shape, Step
from decoder_service.engine.onnx.operators import KvDtype, is_rounded, multiplies_all, substitute
from decoder_service.engine.onnx.packing import CHUNK, LOGITS_INDICES, pack
from decoder_service.engine.onnx.pages import release_pages
from decoder_service.engine.onnx.parts import cut
from serving.cores import lacks_vnni
from serving.memory import lacks_memory


class Runner:
    """Runs any of its graphs.

    Args:
        embedding: Path of the graph that computes embeddings from ids and features.
        threads: Threads per operator.
        layers: Layers of the model.
        head_size: Width of an attention head.
        operators: Path of our own operators, for graphs with quantized weights; None: ONNX Runtime's are used.
        kv_dtype: How our own attention stores keys and values.
        repack: Whether ONNX Runtime may copy float32 weights into a faster layout. Otherwise they stay in the mapped
            file.
    """

    def __init__(
        self,
        embedding: Path,
        *,
        threads: int,
        layers: int,
        head_size: int,
        operators: Path | None = None,
        kv_dtype: KvDtype = "int8",
        repack: bool = True,
    ) -> None:
        self._repack = repack
        self._threads = threads
        self._head_size = head_size
        self._operators = operators
        self._kv_dtype = kv_dtype
        self._embedding = onnxruntime.InferenceSession(embedding, _options(1), _PROVIDERS)
        self._feature_width = int(self._embedding.get_outputs()[0].shape[-1])
        self._layers = layers
        self._tensors = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
        self._parts: dict[str, list[_Part]] = {}
        self._buffers: Sequence[NDArray[Any]] = ()

    def load(self, name: str, path: Path, *, layers_at_once: int | None = None) -> None:
        """Load a graph. All must have the inputs, outputs and KV cache of the first one.

        Args:
            name: Name of the graph for `run`.
            path: Path of the graph.
            layers_at_once: Layers per part; None: a single part.
        """
        model = onnx.load(path, load_external_data=False)
        ours = (
            self._operators is not None
            and is_rounded(model)
            and substitute(model, head_size=self._head_size, threads=self._threads, kv_dtype=self._kv_dtype) > 0
        )
        options = _options(1 if ours and multiplies_all(model) else self._threads)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        if not self._repack and not is_rounded(model):
            options.add_session_config_entry("session.disable_prepacking", "1")
        if ours:
            options.register_custom_ops_library(str(self._operators))
        pack(model.graph)
        models = [model] if layers_at_once is None else cut(model, layers=self._layers, each=layers_at_once)
        if len(models) > 1:  # they run one after another, so one arena is enough
            _share_an_arena()
            options.add_session_config_entry("session.use_env_allocators", "1")
        self._parts[name] = [
            _Part(onnxruntime.InferenceSession(each.SerializeToString(), options, _PROVIDERS)) for each in models
        ]
        data = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
        for file in {entry.value for entry in data if entry.key == "location"}:
            release_pages(path.parent / file)
        if len(self._parts) > 1:
            return
        inputs = {value.name: value for value in model.graph.input}
        keys = inputs[f"past_key_values.{self._tensors[0]}"].type.tensor_type
        self.cache_dtype = np.dtype(helper.tensor_dtype_to_np_dtype(keys.elem_type))
        self.cache_width = int(keys.shape.dim[-1].dim_value) or self._head_size
        logits = next(value for value in model.graph.output if value.name == "logits")
        positions = inputs["position_ids"].type.tensor_type.shape.dim
        short = {entry.key: entry.value for entry in model.metadata_props}.get(LONGEST_SHORT)
        self._plain = len(positions) == 2  # without axes: batch and sequence
        self.shape = Shape(
            vocabulary=logits.type.tensor_type.shape.dim[-1].dim_value,
            feature_width=self._feature_width,
            axes=1 if self._plain else positions[0].dim_value,
            has_adapter=ADAPTER_TOKENS in inputs,
            longest_short=None if short is None else int(short),
        )

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs."""
        return tuple(self._parts)

    def parts(self, graph: str) -> int:
        """Number of parts of a graph."""
        return len(self._parts[graph])

    def use(self, buffers: Sequence[NDArray[Any]]) -> None:
        """Bind the graphs to a KV cache: for each layer keys and values, [slots, heads, length, `cache_width`]."""
        self._buffers = buffers
        for part in itertools.chain.from_iterable(self._parts.values()):
            part.forget()

    def run(self, graph: str, *, step: Step | None = None, piece: Piece | None = None) -> NDArray[np.float32]:
        """Run a decode step, a prefill chunk, or both in one run; see `Model.decode`."""
        *_, logits = self.run_by_parts(graph, step=step, piece=piece)
        assert logits is not None  # noqa: S101  # the last part is the head
        return logits

    def run_by_parts(
        self, graph: str, *, step: Step | None = None, piece: Piece | None = None, head: bool = True
    ) -> Iterator[NDArray[np.float32] | None]:
        """The same, one part of the graph for each `next`.

        Args:
            graph: Name of the graph.
            step: The decode step, if any.
            piece: The prefill chunk, if any.
            head: Whether the logits are needed; otherwise the last of several parts is skipped.

        Yields:
            None after each part, and the logits after the head.
        """
        decoding = step.lengths.size if step is not None else 0
        size = piece.token_ids.size if piece is not None else 0
        # All tokens form one sequence, except in a run of decode alone, where each has its own. A chunk always uses the
        # second cache: by that our attention tells prefill from decode.
        layout = (1, decoding + size) if size else (decoding, 1)
        wanted = [*range(decoding), *([decoding + size - 1] if size else [])]
        logits = np.empty((len(wanted), 1, self.shape.vocabulary), np.float32)
        (mask, slots), (chunk_mask, chunk_slots) = _slots(step), _slots(piece)
        given: dict[str, NDArray[Any]] = {
            "inputs_embeds": self._embed(step, piece).reshape(*layout, -1),
            "position_ids": self._positions(step, piece).reshape(layout if self._plain else (self.shape.axes, *layout)),
            "attention_mask": mask,
            f"{CHUNK}attention_mask": chunk_mask,
            LOGITS_INDICES: np.array(wanted, np.int64),
        }
        if self.shape.has_adapter:
            given[ADAPTER_TOKENS] = _adapted(step, piece, layout)
        between: dict[str, Any] = {}
        parts = self._parts[graph]
        for index, part in enumerate(parts):
            last = index + 1 == len(parts)
            if last and not head and index:
                return
            self._bind_cache(part, "", slots)
            self._bind_cache(part, CHUNK, chunk_slots)
            part.run(given, logits, between)
            yield logits[:, 0] if last else None

    def _embed(self, step: Step | None, piece: Piece | None) -> NDArray[np.float32]:
        """Embeddings of all tokens, those of the decode step first: [1, n, width]."""
        # Generated ids are text, even if the model samples a media token: there are no features for it.
        nothing = np.empty((0, self._feature_width), np.float32)
        parts = [] if step is None else [(step.token_ids, nothing)]
        if piece is not None:
            prompt, answer = np.split(piece.token_ids, [piece.token_ids.size - piece.generated])
            parts += [(prompt, piece.features), (answer, nothing)]
        feeds = [{"input_ids": ids[None].astype(np.int64), "image_features": rows} for ids, rows in parts if ids.size]
        found = [self._embedding.run(["inputs_embeds"], feed)[0] for feed in feeds]
        return np.concatenate(found, 1) if len(found) > 1 else np.asarray(found[0])

    def _positions(self, step: Step | None, piece: Piece | None) -> NDArray[np.int64]:
        """Positions of all tokens, those of the decode step first: [axes, n]."""
        axes = self.shape.axes
        decoding = step.positions if step is not None else np.empty(0, np.int64)
        chunk = piece.positions if piece is not None else np.empty((axes, 0), np.int64)
        positions = np.empty((axes, decoding.size + chunk.shape[1]), np.int64)
        positions[:, : decoding.size], positions[:, decoding.size :] = decoding, chunk
        return positions

    def _bind_cache(self, part: _Part, prefix: str, slots: slice) -> None:
        """Bind slots as past and as present, unless they are bound already: that takes 144 calls for 36 layers."""
        if part.slots.get(prefix) == slots:
            return
        for tensor, buffer in zip(self._tensors, self._buffers, strict=True):
            past = f"{prefix}past_key_values.{tensor}"
            if past in part.inputs:
                _bind(part.binding.bind_input, past, buffer[slots])
                _bind(part.binding.bind_output, f"{prefix}present.{tensor}", buffer[slots])
        part.slots[prefix] = slots


class _Part:
    """A graph, or a part of one.

    Attributes:
        inputs: Names of its inputs.
        binding: Its inputs and outputs.
        slots: The slots to which its keys and values are bound, by prefix.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.inputs = {value.name for value in session.get_inputs()}
        outputs = [value.name for value in session.get_outputs()]
        self._logits = "logits" in outputs
        self._handed = [name for name in outputs if name != "logits" and "present." not in name]
        self.forget()

    def forget(self) -> None:
        """Remove all bindings."""
        self.binding: Any = self._session.io_binding()
        self.slots: dict[str, slice] = {}
        self._bind_handed()  # first: ONNX Runtime returns outputs in the order in which they were bound

    def _bind_handed(self) -> None:
        """Let ONNX Runtime allocate the outputs for the next parts."""
        for name in self._handed:
            self.binding.bind_output(name)

    def run(self, given: Mapping[str, NDArray[Any]], logits: NDArray[np.float32], between: dict[str, Any]) -> None:
        """Run it.

        Args:
            given: The inputs of the whole graph, except the KV cache, which is bound already.
            logits: Receives the logits.
            between: Outputs of earlier parts for later ones, by name; those of this part are added.
        """
        for name, value in given.items():
            if name in self.inputs:
                _bind(self.binding.bind_input, name, value)
        for name in self.inputs & between.keys():
            self.binding.bind_ortvalue_input(name, between[name])
        self._bind_handed()
        if self._logits:
            _bind(self.binding.bind_output, "logits", logits)
        try:
            self._session.run_with_iobinding(self.binding)
        except Exception as error:
            if lacks_memory(error):  # ONNX Runtime has no exception class of its own for it
                raise MemoryError(str(error)) from error
            raise
        if self._handed:
            between.update(zip(self._handed, self.binding.get_outputs(), strict=False))


def _adapted(step: Step | None, piece: Piece | None, layout: tuple[int, int]) -> NDArray[np.int64]:
    """The tokens of requests that use the adapter, by row and place in the row: [1, n, 2]."""
    adapted = np.zeros(layout, np.bool_)
    of_step = step.lengths.size if step is not None else 0
    if step is not None and step.adapted is not None:
        adapted.reshape(-1)[:of_step] = step.adapted
    if piece is not None:
        adapted.reshape(-1)[of_step:] = piece.adapted
    return np.ascontiguousarray(np.argwhere(adapted)[np.newaxis])


def _slots(part: Step | Piece | None) -> tuple[NDArray[np.int64], slice]:
    """The attention mask of a part, as long as each slot after the run, and the range of its slots."""
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
    """Create the arena that sessions can share. A process can create it only once."""
    cpu = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(cpu, None)


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Each session has its own threads, which would spin after a run and take cores from another session's.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if lacks_vnni():
        # An exact 8-bit matmul. With VNNI all are exact, and this one is slower.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _bind(bind: Any, name: str, array: NDArray[Any]) -> None:
    """Bind an array's own memory, which the caller must keep alive."""
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
