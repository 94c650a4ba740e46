"""A packed graph cut into parts, a few layers in each, so that answers can have a token between two of them.

A chunk of a prompt reads all weights, so a small one costs as much as one many times as long; and a long one lets those
who answer wait. Cut between layers, a long chunk is computed a part at a time. What is computed is the same.

What precedes the layers (lengths from masks, DeepStack's features) is repeated in every part that needs it. So parts
hand on only what layers have computed. The last part is the head, which gives the logits and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

_LAYER = re.compile(r"/model/layers\.(\d+)/")


def cut(model: ModelProto, *, layers: int, each: int) -> list[ModelProto]:
    """Parts of a graph.

    Args:
        model: A packed decoder graph, whose nodes are in an order in which they can be computed.
        layers: How many it has.
        each: How many go into a part.

    Returns:
        In the order in which they are computed, the head last. What a part hands on is an output of it, float32, and an
        input of those that read it. The whole graph, where its layers cannot be told from each other.
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
    """What precedes the layers, constants wherever they stand; and then the layers by parts, and the head."""
    before: list[NodeProto] = []
    bodies: list[list[NodeProto]] = [[] for _ in range(-(-layers // each) + 1)]
    layer: int | None = None
    for node in graph.node:
        if (found := _LAYER.match(node.name)) is not None:
            layer = int(found[1])  # the norm behind the last one is numbered as a layer, too
        if layer is None or node.op_type == "Constant":
            before.append(node)
        else:
            bodies[-1 if layer >= layers else layer // each].append(node)
    return before, bodies


def _closure(names: Iterable[str], made_by: dict[str, NodeProto], nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Of `nodes`, in their order, those that `names` depend on."""
    found: set[int] = set()
    left = list(names)
    while left:
        node = made_by.get(left.pop())
        if node is not None and id(node) not in found:
            found.add(id(node))
            left += _read([node])
    return [node for node in nodes if id(node) in found]


def _read(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """Names that nodes read, those in branches of theirs included."""
    for node in nodes:
        yield from filter(None, node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _read(attribute.g.node)


def _made(nodes: Iterable[NodeProto]) -> list[str]:
    return [name for node in nodes for name in node.output if name]


def _part(model: ModelProto, nodes: Sequence[NodeProto], *, given: Sequence[str], handed: Sequence[str]) -> ModelProto:
    """A model of these nodes, which reads `given` as far as it is not its own, and gives `handed`."""
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
    """What nodes in branches make."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                yield from inner.output
                yield from _inside(inner)
