"""Divides a packed graph into parts of a few layers, so that decode steps can run between them.

A prefill chunk reads all weights, so a small chunk costs almost as much as one ten times as long, and a long one delays
the running decodes. With parts a long chunk can be computed with decode steps in between. The results are the same.

The nodes before the layers (lengths from masks, features that later layers add) are repeated in every part that needs
them, so only results of layers pass from part to part. The last part is the head, which only computes logits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

_LAYER = re.compile(r"/model/layers\.(\d+)/")


def cut(model: ModelProto, *, layers: int, each: int) -> list[ModelProto]:
    """Divide a graph.

    Args:
        model: A packed decoder graph, with its nodes in topological order.
        layers: Number of its layers.
        each: Layers per part.

    Returns:
        The parts in order, the head last. Tensors that pass from part to part are float32 outputs and inputs. The whole
        graph if its layers cannot be identified.
    """
    before, bodies = _sections(model.graph, layers, each)
    if not all(bodies):
        return [model]
    made_before = {name: node for node in before for name in node.output}
    wanted = {value.name for value in model.graph.output}
    needed = [set(_read(body)) for body in bodies]
    parts = []
    for index, body in enumerate(bodies):
        made = {name for node in body for name in node.output}
        repeated = _closure(needed[index], made_before, before)
        later = set().union(*needed[index + 1 :]) | wanted
        own = [*repeated, *body]
        parts.append(_part(model, own, given=sorted(_read(own)), handed=[n for n in _made(body) if n in made & later]))
    return parts


def _sections(graph: GraphProto, layers: int, each: int) -> tuple[list[NodeProto], list[list[NodeProto]]]:
    """The nodes before the layers, with all constants; and the nodes of each part, the head last."""
    before: list[NodeProto] = []
    bodies: list[list[NodeProto]] = [[] for _ in range(-(-layers // each) + 1)]
    layer: int | None = None
    for node in graph.node:
        if (found := _LAYER.match(node.name)) is not None:
            layer = int(found[1])  # the final norm is numbered as a layer as well
        if layer is None or node.op_type == "Constant":
            before.append(node)
        else:
            bodies[-1 if layer >= layers else layer // each].append(node)
    return before, bodies


def _closure(names: Iterable[str], made_by: dict[str, NodeProto], nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """The nodes that `names` depend on, in their order."""
    found: set[int] = set()
    left = list(names)
    while left:
        node = made_by.get(left.pop())
        if node is not None and id(node) not in found:
            found.add(id(node))
            left += _read([node])
    return [node for node in nodes if id(node) in found]


def _read(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """Names that nodes read, including those in their branches."""
    for node in nodes:
        yield from filter(None, node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _read(attribute.g.node)


def _made(nodes: Iterable[NodeProto]) -> list[str]:
    return [name for node in nodes for name in node.output if name]


def _part(model: ModelProto, nodes: Sequence[NodeProto], *, given: Sequence[str], handed: Sequence[str]) -> ModelProto:
    """A model of these nodes, which reads those of `given` that it does not compute, and returns `handed`."""
    graph = model.graph
    inputs = {value.name: value for value in graph.input}
    outputs = {value.name: value for value in graph.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    own = {*_made(nodes), *(name for node in nodes for name in _inside(node))}

    def between(name: str) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)

    names = [name for name in dict.fromkeys(given) if name not in own]
    part = helper.make_graph(
        nodes,
        graph.name,
        [inputs.get(name) or between(name) for name in names if name not in weights],
        [outputs.get(name) or between(name) for name in handed],
        [weights[name] for name in names if name in weights],
    )
    return helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)


def _inside(node: NodeProto) -> Iterator[str]:
    """Names that nodes in branches compute."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                yield from inner.output
                yield from _inside(inner)
