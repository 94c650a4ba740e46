"""Train the demo model from nothing: `python -m recipes.demo_model.train --out DIR`.

The run keeps its state (weights, optimizers, step, history) every few minutes and goes on from there with --resume.
Batches depend on the seed and the step alone, so a resumed run is the run that was never interrupted. When it ends, DIR
holds the checkpoint, and loss.png beside the state shows the course of it.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from tqdm import tqdm
from transformers import Qwen3VLForConditionalGeneration

from demo.skills import texts
from demo.tokenizer import build_tokenizer
from recipes.demo_model.checkpoint import save_checkpoint
from recipes.demo_model.config import model_config
from recipes.demo_model.data import Batch, Batches, Course, Part, batches
from recipes.demo_model.forward import Arithmetic, losses
from recipes.demo_model.memory import keep_memory
from recipes.demo_model.optim import Optimizers
from recipes.demo_model.picture import draw_history
from recipes.demo_model.prompts import SYSTEM_PROMPTS
from recipes.demo_model.ranks import Ranks, joined, meet
from recipes.demo_model.sight import SightHeads

STEPS = 12400
RANKS = 2
_SIGHT_WEIGHT = 0.3
_TALKING_SHARE = 0.6  # of the rates, for the text model: over 300 steps, whole ones taught it nothing more
_TOWER_SHARE = 0.4  # of the rates, while both learn: whole ones would cost the tower letters that it knows
_ROUNDED_FROM = 0.6  # share of talking after which weights are rounded to INT4 in the forward pass


@dataclass
class Run:
    """A training run in memory."""

    model: Qwen3VLForConditionalGeneration
    heads: SightHeads
    optimizers: Optimizers
    step: int = 0
    seconds: float = 0.0
    history: list[tuple[int, float, float]] = field(default_factory=list)  # step, loss, token accuracy
    ranks: Ranks = field(default_factory=Ranks)

    def learn(self, batch: Batch, progress: float, part: Part = Part.BOTH) -> None:
        """One step on one batch; `progress` is the share of looking, or of talking, that is over."""
        arithmetic = Arithmetic(rounded=progress >= _ROUNDED_FROM)
        result = losses(self.model, batch, self.heads, part=part, arithmetic=arithmetic)
        loss = result.answers + _SIGHT_WEIGHT * result.sight
        self._descend(loss, progress, 1.0 if part is Part.LOOKING else _TOWER_SHARE)
        self.step += 1
        loss_value, accuracy = self.ranks.mean(loss.item(), result.accuracy.item())
        self.history.append((self.step, loss_value, accuracy))

    def glance(self, batch: Batch, progress: float) -> None:
        """Look at a batch beside the step that comes: only the vision tower learns from it."""
        result = losses(self.model, batch, self.heads, part=Part.LOOKING)
        self._descend(_SIGHT_WEIGHT * result.sight, progress, _TOWER_SHARE)

    def _descend(self, loss: torch.Tensor, progress: float, looking: float) -> None:
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
        self.ranks.average([*self.model.parameters(), *self.heads.parameters()])
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizers.step(self.ranks, self.step, progress, looking, _TALKING_SHARE)

    def save(self, path: Path | None) -> None:
        """Keep everything that the next step depends on; an interrupted save leaves the last one intact.

        All ranks call it together; one without a path writes nothing.
        """
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": self.optimizers.state_dict(self.ranks),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
        }
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".partial")
        torch.save(state, scratch)
        scratch.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a saved state."""
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]


def recipe_tokenizer() -> Tokenizer:
    """The tokenizer, which follows from the skills' texts alone."""
    return build_tokenizer([*texts(), *SYSTEM_PROMPTS])


def new_run(tokenizer: Tokenizer, seed: int, *, tiny: bool = False) -> Run:
    """A run before its first step."""
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(model_config(tokenizer.get_vocab(), tiny=tiny))
    heads = SightHeads(model.config.text_config.hidden_size)  # type: ignore[union-attr]  # it is the parsed config
    return Run(model, heads, Optimizers(nn.ModuleList([model, heads])))


def train(
    run: Run,
    tokenizer: Tokenizer,
    course: Course,
    *,
    seed: int,
    steps: int,
    state: Path | None = None,
    save_every: float = 120.0,
    workers: int = 1,
) -> None:
    """Train until `steps` steps are done, and save every so many seconds.

    SIGTERM or Ctrl-C, to any rank, ends it after the step at hand, so that a resumed run can go on from there.
    """
    saved = time.monotonic()
    with (
        _told_to_stop() as stopped,
        tqdm(
            total=steps,
            initial=run.step,
            unit="step",
            dynamic_ncols=True,
            mininterval=5.0,
            disable=run.ranks.rank > 0,
        ) as bar,
    ):
        began = time.monotonic() - run.seconds
        ahead = range(run.step, steps)
        beside = Batches(tokenizer, seed + 1, course.beside, run.ranks)
        glances = batches(beside, [step for step in ahead if course.glances_at(step)], workers=workers)
        for batch in batches(Batches(tokenizer, seed, course, run.ranks), ahead, workers=workers):
            due = state is not None and time.monotonic() - saved > save_every
            told, due_to_any = run.ranks.mean(len(stopped), due)
            if told:
                break
            if due_to_any:
                run.save(state)
                saved = time.monotonic()
            progress = course.progress(run.step, steps)
            part = course.part(run.step)
            if course.glances_at(run.step):
                run.glance(next(glances), progress)
            run.learn(batch, progress, part)
            run.seconds = time.monotonic() - began
            _, loss, accuracy = run.history[-1]
            bar.set_postfix(loss=f"{loss:.3f}", tokens=f"{accuracy:.1%}", refresh=False)
            bar.update()
    run.save(state)


@contextmanager
def _told_to_stop() -> Iterator[list[int]]:
    """The signals received that ask for an end; empty until one comes."""
    received: list[int] = []
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda number, _: received.append(number)) for number in signals]
    try:
        yield received
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


@dataclass(frozen=True)
class Plan:
    """What the command line asks for."""

    steps: int
    seed: int
    workers: int
    resume: bool
    state: Path


def carry_out(plan: Plan, tokenizer: Tokenizer, ranks: Ranks) -> Run:
    """A rank's part of the run; the first one keeps the state."""
    keep_memory()
    torch.set_num_threads(1)
    # Of attention hardly anything is the exponential of a small number: computed exactly, it takes five times as long.
    torch.set_flush_denormal(True)
    run = new_run(tokenizer, plan.seed)
    run.ranks = ranks
    if plan.resume and plan.state.exists():
        run.load(plan.state)
    state = plan.state if ranks.rank == 0 else None
    train(run, tokenizer, Course(), seed=plan.seed, steps=plan.steps, state=state, workers=plan.workers)
    return run


def _other_rank(plan: Plan, ranks: Ranks, store: Path) -> None:
    with meet(ranks, store):
        carry_out(plan, recipe_tokenizer(), ranks)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.demo_model.train", description="Train the demo model from nothing."
    )
    parser.add_argument("--out", type=Path, required=True, help="directory for the checkpoint")
    parser.add_argument("--state", type=Path, help="directory for what a resumed run needs; OUT.run unless it is given")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=RANKS, help="processes that train; another number, another model")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw, for each that trains")
    parser.add_argument("--resume", action="store_true", help="go on from the state, if there is one")
    options = parser.parse_args()

    side = options.state or options.out.with_name(options.out.name + ".run")
    plan = Plan(options.steps, options.seed, options.workers, options.resume, side / "state.pt")
    tokenizer = recipe_tokenizer()
    with joined(partial(_other_rank, plan), options.ranks) as ranks:
        run = carry_out(plan, tokenizer, ranks)
    if run.step < plan.steps:
        raise SystemExit(f"stopped after step {run.step}; go on with --resume")
    save_checkpoint(run.model, tokenizer, options.out)
    draw_history(run.history, side / "loss.png")
    tqdm.write(f"{run.step} steps in {run.seconds / 60:.0f} minutes; the checkpoint is in {options.out}")


if __name__ == "__main__":
    main()
