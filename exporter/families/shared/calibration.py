"""The pass over a checkpoint that finds how each site is rounded: one layer at a time, as the export itself reads it.

The hidden states of all examples go through a layer in float32 and are then the next one's. What arrives at its sites
is counted on the way. It is the activations of the model as it was trained, not of the rounded one: those of every
graph would be others, and errors of layers before are not what a layer's scales can mend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from exporter.calibrated import Plan, SitePlan, Tokens
from exporter.choice import Reader, Rounding, choose, error, spread, ways
from exporter.precision import Phase, Precision
from exporter.progress import Progress, quiet
from exporter.recipe import Kind

from .adapter import switched
from .checkpoint import EMBEDDING, Checkpoint
from .layers import head_rows, read_layer, read_norm, spread_head
from .smoothing import HEAD, Site, column_factors, sites

Roundings = Mapping[Phase, Callable[[Kind, int], Rounding]]
"""How each graph rounds a matrix of a kind in a layer; the head is in layer 0."""

_ROWS = 256  # of activations that errors are measured on, spread evenly over all tokens


@torch.no_grad()
def calibrate(
    checkpoint: Checkpoint, tokens: Sequence[Tokens], roundings: Roundings, *, smooth: bool = True, progress: Progress
) -> Plan:
    """Find factors and importances of every site.

    Args:
        checkpoint: the model.
        tokens: what it reads.
        roundings: of each graph.
        smooth: whether factors may be others than 1.
        progress: shows a bar.
    """
    plan: dict[tuple[int, str], SitePlan] = {}
    count = checkpoint.text.num_hidden_layers
    with progress.bar("calibration", total=count + 1, unit="layers") as advance, quiet():
        stream = _Stream(checkpoint, tokens)
        for index in range(count):
            layer = read_layer(checkpoint, index).float()
            inputs = stream.through(layer, index)
            planner = _Planner(roundings, index, smooth=smooth)
            plan |= {(index, site.name): planner.plan(site, inputs[site.name]) for site in sites(layer)}
            advance(1)
        planner = _Planner(roundings, 0, smooth=smooth)
        plan[-1, HEAD] = planner.plan_head(checkpoint, stream.before_head(read_norm(checkpoint).float()))
        advance(1)
    return plan


@dataclass(eq=False)
class _Inputs:
    """What arrives at a site: activations of each token over the magnitude of what its outputs are added to.

    Attributes:
        squares: sum of squares over tokens, float64 [inputs].
        largest: largest magnitude [inputs].
        rows: some of them [rows, inputs].
        count: of the tokens.
    """

    squares: torch.Tensor
    largest: torch.Tensor
    rows: list[torch.Tensor] = field(default_factory=list)
    count: int = 0

    @classmethod
    def empty(cls, width: int) -> _Inputs:
        return cls(torch.zeros(width, dtype=torch.float64), torch.zeros(width))

    def add(self, values: torch.Tensor, kept: torch.Tensor) -> None:
        """Count values [tokens, inputs], and keep some of them as rows."""
        self.squares += values.double().square().sum(0)
        self.largest = torch.maximum(self.largest, values.abs().amax(0))
        self.rows.append(values[kept])
        self.count += len(values)

    @property
    def importance(self) -> torch.Tensor:
        """Root mean square of each input, float32 [inputs].

        The squared error of its weights is multiplied by this. The mean square itself would be exact for the examples,
        but the few inputs that are large in them are not as large in every prompt.
        """
        return (self.squares / self.count).sqrt().float()


class _Stream:
    """The hidden states of all examples, between two layers."""

    def __init__(self, checkpoint: Checkpoint, tokens: Sequence[Tokens]) -> None:
        self._config = checkpoint.text
        self._tokens = tokens
        self._levels = checkpoint.deepstack_levels
        self._states = [self._embedded(checkpoint, example) for example in tokens]
        rotary = checkpoint.variant.rotary(self._config)
        positions = [torch.from_numpy(example.positions) for example in tokens]
        if checkpoint.mrope_section is not None:
            positions = [axes[:, None] for axes in positions]  # [axes, 1, n]; one axis alone is [1, n] already
        self._angles = [rotary(state, at) for state, at in zip(self._states, positions, strict=True)]
        total = sum(len(example.ids) for example in tokens)
        chosen = np.zeros(total, np.bool_)
        chosen[np.linspace(0, total - 1, min(_ROWS, total)).astype(int)] = True
        self._kept = torch.split(torch.from_numpy(chosen), [len(example.ids) for example in tokens])

    def _embedded(self, checkpoint: Checkpoint, example: Tokens) -> torch.Tensor:
        table, hidden = checkpoint.tensors[EMBEDDING], self._config.hidden_size
        distinct, places = np.unique(example.ids, return_inverse=True)
        rows = torch.cat([table.read(slice(token, token + 1)) for token in distinct.tolist()]).float()
        state = rows[torch.from_numpy(places)]
        state[torch.from_numpy(example.is_media)] = torch.from_numpy(example.features[:, :hidden])
        return state[None]

    def through(self, layer: Any, index: int) -> Mapping[str, _Inputs]:
        """Take the states through a layer and what follows it; returns what arrived at its sites.

        Examples with media go through its adapter, too.
        """
        hidden = self._config.hidden_size
        inputs = {site.name: _Inputs.empty(next(iter(site.readers.values())).in_features) for site in sites(layer)}
        seen: dict[str, torch.Tensor] = {}
        hooks = [
            _keep(layer.self_attn.o_proj, seen, "o"),
            _keep(layer.mlp.down_proj, seen, "down"),
        ]
        for number, example in enumerate(self._tokens):
            kept = self._kept[number]
            state = self._states[number]
            with switched(layer, on=bool(example.is_media.any())):
                normed = layer.input_layernorm(state)
                inputs["qkv"].add(normed[0], kept)
                state = (
                    state + layer.self_attn(normed, position_embeddings=self._angles[number], attention_mask=None)[0]
                )
                inputs["o"].add(seen["o"] / _magnitude(state[0]), kept)
                normed = layer.post_attention_layernorm(state)
                inputs["gate_up"].add(normed[0], kept)
                state = state + layer.mlp(normed)
                inputs["down"].add(seen["down"] / _magnitude(state[0]), kept)
            if index < self._levels:
                start = (1 + index) * hidden
                level = torch.from_numpy(example.features[:, start : start + hidden])
                state[0, torch.from_numpy(example.is_media)] += level
            self._states[number] = state
        for hook in hooks:
            hook.remove()
        return inputs

    def before_head(self, norm: nn.Module) -> _Inputs:
        """What arrives at the output head, behind the final norm."""
        inputs = _Inputs.empty(self._config.hidden_size)
        for state, kept in zip(self._states, self._kept, strict=True):
            inputs.add(norm(state)[0], kept)
        return inputs


def _keep(module: nn.Module, seen: dict[str, torch.Tensor], name: str) -> torch.utils.hooks.RemovableHandle:
    """Keep what the module is given."""

    def keep(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        seen[name] = given[0][0]

    return module.register_forward_pre_hook(keep)


def _magnitude(states: torch.Tensor) -> torch.Tensor:
    """Root mean square of each row [rows, 1].

    The next norm divides by it. A token whose states are thousands of times as large as the others', as the first one's
    are in trained models, would otherwise be all that is looked at.
    """
    return states.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)


class _Planner:
    """Chooses the factors of one layer's sites.

    Args:
        roundings: of each graph.
        layer: which one; 0 for the output head.
        smooth: whether factors may be others than 1.
    """

    def __init__(self, roundings: Roundings, layer: int, *, smooth: bool) -> None:
        self._roundings = roundings
        self._layer = layer
        self._smooth = smooth
        # By what the outputs of a matrix have been multiplied already, by the identity of the matrix.
        self._scaled: dict[tuple[Precision | Phase, int], torch.Tensor] = {}

    def plan(self, site: Site, inputs: _Inputs) -> SitePlan:
        """Choose for a site of a layer."""
        heaviest = torch.stack([site.columns(linear.weight.abs()).amax(0) for linear in site.readers.values()]).amax(0)
        samples = {kind: spread(linear.weight) for kind, linear in site.readers.items()}
        tried, errors = {}, {}
        for graph in self._roundings:
            of_weights = column_factors(site.columns(self._rows(graph, linear)) for linear in site.readers.values())
            tried[graph] = self._tried(site.columns(inputs.largest[None]).amax(0), heaviest, of_weights)
            errors[graph] = self._errors(graph, inputs, samples, [site.inputs(way) for way in tried[graph]])
        if site.groups is not None:
            # V is what the cache holds, which the graphs share.
            together = [sum(of_way) for of_way in zip(*errors.values(), strict=True)]
            errors = {graph: together for graph in errors}  # noqa: C420  # it is read alone
        chosen: dict[Precision | Phase, torch.Tensor] = {
            graph: tried[graph][choose(of_graph)] for graph, of_graph in errors.items()
        }
        if isinstance(site.source, nn.Linear):
            self._scaled |= {(graph, id(site.source)): factors for graph, factors in chosen.items()}
        return SitePlan(chosen, inputs.importance)

    def plan_head(self, checkpoint: Checkpoint, inputs: _Inputs) -> SitePlan:
        """The same for the final norm and the output head, of which only some rows are in memory at a time."""
        heaviest = torch.stack([part.float().abs().amax(0) for part in head_rows(checkpoint)]).amax(0)
        tried = self._tried(inputs.largest, heaviest, column_factors(head_rows(checkpoint)))
        samples: Mapping[Kind, torch.Tensor] = {"head": spread_head(checkpoint)}
        chosen: dict[Precision | Phase, torch.Tensor] = {
            graph: tried[choose(self._errors(graph, inputs, samples, tried))] for graph in self._roundings
        }
        return SitePlan(chosen, inputs.importance)

    def _tried(self, largest: torch.Tensor, heaviest: torch.Tensor, of_weights: torch.Tensor) -> Sequence[torch.Tensor]:
        """The ways to try, none first."""
        nothing = torch.ones_like(of_weights)
        return [nothing, of_weights, *ways(largest, heaviest)] if self._smooth else [nothing]

    def _errors(
        self, graph: Phase, inputs: _Inputs, samples: Mapping[Kind, torch.Tensor], tried: Sequence[torch.Tensor]
    ) -> list[float]:
        """What each way costs."""
        if len(tried) == 1:
            return [0.0]
        readers = [Reader(sample, self._roundings[graph](kind, self._layer)) for kind, sample in samples.items()]
        rows = torch.cat(inputs.rows)
        return [error(rows, inputs.importance, readers, way) for way in tried]

    def _rows(self, graph: Phase, linear: nn.Linear) -> torch.Tensor:
        """A weight as the sites before left it."""
        factors = self._scaled.get((graph, id(linear)))
        return linear.weight if factors is None else linear.weight * factors[:, None]
