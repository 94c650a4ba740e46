"""The recipe on a tiny model: what it feeds is what the stock model expects, it learns, and it resumes exactly."""

import random
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import recipes.demo_model.train
from decoder_service.chat import Layout, MediaKind, Medium, Message, Role, Text
from decoder_service.families.qwen3_vl.prompt_layout import Qwen3VL
from decoder_service.request.prompt import PromptBuilder
from demo.seeds import Split, stream
from demo.skills import Example
from recipes.demo_model.checkpoint import save_checkpoint
from recipes.demo_model.config import model_config
from recipes.demo_model.data import IGNORED, Batch, Batches, Course, Part, batches, collate
from recipes.demo_model.forward import Arithmetic, losses
from recipes.demo_model.lessons import lesson
from recipes.demo_model.prompts import SYSTEM_PROMPTS, render
from recipes.demo_model.quantize import BLOCK, round_int4
from recipes.demo_model.sight import Fact
from recipes.demo_model.train import Run, new_run, recipe_tokenizer, train
from serving.bundle import TokenIds
from tests.recipes.demo_model.stock import image_processor

TOKENIZER = recipe_tokenizer()
COURSE = Course(batch_size=4, batch_asked=4, turns=2, look_until=0, scenes_until=0, still_until=0)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Bit-equal sums need the same division of labour."""
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["scene", "sign", "pair", "talk"])
def test_prompts_are_the_chat_templates(tmp_path: Path, kind: str) -> None:
    """Training reads the very ids that rendering the chat with the template and expanding placeholders gives."""
    save_checkpoint(new_run(TOKENIZER, 0, tiny=True).model, TOKENIZER, tmp_path / "checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "checkpoint")
    chat = replace(lesson(kind, stream(Split.TRAIN, 3), [(200, 120)], 2, 4), apart=False)
    grids = np.zeros((0, 3), np.int64)
    if chat.images:
        grids = image_processor()(list(chat.images), return_tensors="np")["image_grid_thw"]
    messages = [{"role": "system", "content": SYSTEM_PROMPTS[0]}]
    for index, turn in enumerate(chat.turns):
        shown = 1 if chat.one_each else len(chat.images) if index == 0 else 0
        media = [{"type": "image"}] * shown
        messages.append({"role": "user", "content": [*media, {"type": "text", "text": turn.question}]})
        messages.append({"role": "assistant", "content": turn.answer})
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    before, *after = text.split("<|image_pad|>")
    text = before + "".join(
        "<|image_pad|>" * (int(grid.prod()) // 4) + rest for grid, rest in zip(grids, after, strict=True)
    )
    sequence = render(chat, grids, TOKENIZER, system=SYSTEM_PROMPTS[0])
    assert sequence.ids.tolist() == tokenizer(text)["input_ids"]
    learnt = TOKENIZER.decode(sequence.ids[sequence.learn].tolist(), skip_special_tokens=False)
    assert learnt == "".join(f"{turn.answer}<|im_end|>" for turn in chat.turns)


def test_clips_are_written_as_videos_are(tmp_path: Path) -> None:
    """A clip's prompt is what the decoder service makes of it: each temporal patch after its time."""
    save_checkpoint(new_run(TOKENIZER, 0, tiny=True).model, TOKENIZER, tmp_path / "checkpoint")
    config = model_config(TOKENIZER.get_vocab(), tiny=True)
    tokens = TokenIds(
        image=config.image_token_id,
        video=config.video_token_id,
        vision_start=config.vision_start_token_id,
        vision_end=config.vision_end_token_id,
        eos=(0,),
    )
    prompts = PromptBuilder.load(tmp_path / "checkpoint", Qwen3VL(tokens, merge_size=2))
    chat = lesson("clip", stream(Split.TRAIN, 3), [(160, 128)], 1, 4)
    chat = replace(chat, turns=chat.turns[:1])
    video = Medium(MediaKind.VIDEO, "sha256:" + "0" * 64)
    rendered = prompts.render([Message(Role.USER, (video, Text(chat.turns[0].question)))])
    served = prompts.expand(rendered, [Layout(video, (2, 8, 10), 40, (0.25, 1.5))])
    sequence = render(chat, served.inputs["image_grid_thw"], TOKENIZER, times=(0.25, 1.5))
    assert sequence.ids[: len(served.engine_token_ids)].tolist() == served.engine_token_ids.tolist()
    assert TOKENIZER.decode(sequence.ids[len(served.engine_token_ids) :].tolist()) == chat.turns[0].answer + "\n"


def test_a_clips_patches_hold_the_frames_one_after_the_other() -> None:
    """The two halves of a temporal patch are the stock patches of its two frames."""
    batches, processor = Batches(TOKENIZER, 0, COURSE), image_processor()
    clip = lesson("clip", stream(Split.TRAIN, 3), [(160, 128)], 1, 4).clip
    assert clip is not None
    pixels, grids, views, times = batches._watch(stream(Split.TRAIN, 4), clip)
    assert len(grids) == len(views) == len(times)
    assert len(pixels) == grids.prod(-1).sum()
    patches = pixels.view(len(grids), -1, 3, 2, 256)
    for half, time in ((patches[0, :, :, 0], 0.0), (patches[-1, :, :, 1], 1.0)):
        stock = processor([clip.frame(time)], return_tensors="pt")["pixel_values"].view(-1, 3, 2, 256)
        torch.testing.assert_close(half, stock[:, :, 0], rtol=0, atol=1e-6)


def test_positions_and_loss_are_the_stock_models() -> None:
    """Our positions equal transformers', and so do the losses of our forward pass and every gradient, in float32."""
    run = new_run(TOKENIZER, 0, tiny=True)
    model, heads = run.model, run.heads
    for name, parameter in model.named_parameters():
        if "norm" in name:  # all alike to begin with: any mistake about them would pass
            parameter.data += 0.3 * torch.randn_like(parameter)
    batch = Batches(TOKENIZER, 0, COURSE)[500]
    used = batch.input_ids.ne(0) | (torch.arange(batch.input_ids.shape[1]) == 0)
    positions, _ = model.model.get_rope_index(
        batch.input_ids, batch.image_mask.int(), image_grid_thw=batch.grid, attention_mask=used.long()
    )
    together = used & (batch.turns == 0)
    assert torch.equal(positions * together, batch.position_ids * together)
    assert batch.turns.any()
    assert not batch.turns.any(1).all()

    def gradients(answers: torch.Tensor, sight: torch.Tensor) -> dict[str, torch.Tensor]:
        for parameter in (*model.parameters(), *heads.parameters()):
            parameter.grad = None
        (answers + sight).backward()  # type: ignore[no-untyped-call]  # torch has no type for it
        parameters = [*model.named_parameters(), *heads.named_parameters()]
        return {name: value.grad.clone() for name, value in parameters if value.grad is not None}

    seen_by = torch.ones(2 * batch.turns.shape[1:], dtype=torch.bool).tril()
    visible = seen_by & ((batch.turns[:, None] == 0) | (batch.turns[:, None] == batch.turns[:, :, None]))
    seen = model.model.get_image_features(batch.pixel_values, batch.grid, return_dict=True)
    logits = model(
        input_ids=batch.input_ids,
        pixel_values=batch.pixel_values,
        image_grid_thw=batch.grid,
        position_ids=batch.position_ids,
        attention_mask=torch.where(visible, 0.0, -torch.inf)[:, None],
        use_cache=False,
    ).logits
    answers = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)
    sight = heads(torch.cat(seen.pooler_output), [torch.cat(level) for level in seen.deepstack_features], batch.cells)
    stock = gradients(answers, sight)
    result = losses(model, batch, heads, arithmetic=Arithmetic(torch.float32))
    torch.testing.assert_close(result.answers, answers, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.sight, sight, rtol=1e-5, atol=1e-5)
    ours = gradients(result.answers, result.sight)
    assert ours.keys() == stock.keys()
    for name, gradient in stock.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.norm()), msg=name)

    quick = losses(model, batch, heads)
    assert quick.answers.item() == pytest.approx(answers.item(), rel=0.02)
    assert quick.sight.item() == pytest.approx(sight.item(), rel=0.02)


@pytest.mark.parametrize("kind", ["scene", "pair", "clip"])
def test_turns_asked_apart_are_as_many_chats(kind: str) -> None:
    """They share what is shown, and teach exactly what each would alone. As one chat they teach something else."""
    model = new_run(TOKENIZER, 0, tiny=True).model
    batches, examples = Batches(TOKENIZER, 0, COURSE), (lesson(kind, _rng(i), [(200, 120)], 4, 4) for i in count())
    example = next(example for example in examples if example.apart and len(example.turns) > 1)
    seed = next(seed for seed in count() if batches.chat(example, _rng(seed)).sequence.turn.any())  # not images last

    def taught(*examples: Example) -> tuple[float, torch.Tensor]:
        batch = collate([batches.chat(example, _rng(seed)) for example in examples])
        model.zero_grad()
        loss = losses(model, batch, arithmetic=Arithmetic(torch.float32)).answers
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
        return loss.item(), torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])

    loss, gradient = taught(example)
    loss_alone, alone = taught(*(replace(example, turns=(turn,), apart=False) for turn in example.turns))
    _, as_chat = taught(replace(example, apart=False))
    assert loss == pytest.approx(loss_alone, rel=1e-5)
    assert (gradient - alone).norm() < 1e-4 * alone.norm()
    assert (as_chat - alone).norm() > 0.05 * alone.norm()


def test_turns_share_nothing_that_comes_after_a_question() -> None:
    """With images after the question, they are one chat."""
    example = next(e for i in count() if (e := lesson("scene", _rng(i), [(200, 120)], 4, 4)).apart)
    grids = np.asarray([[1, 8, 14]])
    assert render(example, grids, TOKENIZER).turn.any()
    sequence = render(example, grids, TOKENIZER, media_last=True)
    chat = render(replace(example, apart=False), grids, TOKENIZER, media_last=True)
    assert not sequence.turn.any()
    assert np.array_equal(sequence.ids, chat.ids)
    assert np.array_equal(sequence.positions, chat.positions)


def _rng(index: int) -> random.Random:
    return stream(Split.TRAIN, 3, index)


def test_the_course_goes_from_looking_to_scenes_to_everything() -> None:
    """Shapes are there to look at from the first step; then come small scenes, small clips and pairs, too, then all."""
    course = Course(batch_size=8, batch_asked=6, look_until=1, scenes_until=2, still_until=6)
    assert [course.part(step) for step in range(9)] == [Part.LOOKING, *[Part.TALKING] * 5, *[Part.BOTH] * 3]
    assert [step for step in range(9) if course.glances_at(step)] == [6, 7, 8]
    batches = Batches(TOKENIZER, 0, course)
    looking, *talking = (batches[step] for step in range(18))
    scenes, several, everything = talking[0], talking[1:5], talking[5:]
    assert (looking.cells[:, Fact.CENTRE] == 1).any()
    assert len(scenes.grid) <= 8 < max(len(batch.grid) for batch in several)
    assert all((batch.labels != IGNORED).any() for batch in talking)
    assert [len(batch.input_ids) for batch in (looking, scenes, *several)] == [8] * 6
    assert {len(batch.input_ids) for batch in everything} == {6}

    def tokens(batch: Batch) -> int:
        return int(batch.grid.prod(-1).max()) // 4

    assert all(tokens(batch) <= course.most_still for batch in (scenes, *several))
    assert max(map(tokens, everything)) > 25


def test_pictures_are_small_until_most_is_learnt() -> None:
    """Seven batches in ten hold small ones once all is asked, and in the end one in four; of glances, a third do."""
    course = Course(look_until=0, scenes_until=0, still_until=0, small_until=1000)
    for some in (course, course.beside):
        before, after = (
            sum(some.most_tokens(step, _rng(step)) is not None for step in range(begin, begin + 1000)) / 1000
            for begin in (0, 1000)
        )
        expected = (0.7, 0.25) if some is course else (0.35, 0.35)
        assert (before, after) == pytest.approx(expected, abs=0.05)


def test_what_is_asked_about_changes_with_the_course() -> None:
    """Each part has its shares, which are whole; pairs and clips come after scenes, and mostly at first."""
    course = Course(look_until=1, scenes_until=2, still_until=3)
    parts = [dict(course.kinds(step)) for step in range(4)]
    assert [sum(part.values()) for part in (*parts, dict(course.beside.kinds(4)))] == pytest.approx([1.0] * 5)
    looking, scenes, several, everything = parts
    assert "page" in looking
    assert not {"pair", "clip"} & {*scenes}
    assert several["pair"] + several["clip"] > everything["pair"] + everything["clip"]


def test_beside_talking_letters_are_looked_at() -> None:
    """A glance shows letters and teaches the vision tower alone."""
    glances = Batches(TOKENIZER, 1, COURSE.beside)
    batch = glances[500]
    assert (batch.cells[:, Fact.FIRST_LETTER] > 0).any()
    run = new_run(TOKENIZER, 0, tiny=True)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.glance(batch, 0.0)
    changed = {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all("visual" in name for name in changed)


@pytest.mark.parametrize("part", [Part.LOOKING, Part.TALKING])
def test_what_does_not_learn_stands_still(part: Part) -> None:
    """Looking changes the vision tower alone, and talking about scenes the text model alone."""
    course = replace(COURSE, look_until=1, still_until=2)
    step = 0 if part is Part.LOOKING else 1
    assert course.part(step) is part
    run = new_run(TOKENIZER, 0, tiny=True)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.learn(Batches(TOKENIZER, 0, course)[step], 0.0, part)
    changed = {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert {"visual" in name for name in changed} == {part is Part.LOOKING}


def test_shares_of_the_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tower has whole rates alone, and two fifths beside the text model, which has three fifths.

    Muon's updates show it: they are as long as the rate says, whatever the gradient.
    """

    def moved(part: Part | None) -> tuple[float, float]:
        run = new_run(TOKENIZER, 0, tiny=True)
        model = run.model.model
        weights = [model.visual.blocks[0].attn.qkv.weight, model.language_model.layers[0].mlp.down_proj.weight]
        before = [weight.detach().clone() for weight in weights]
        batch = Batches(TOKENIZER, 0, COURSE)[0]
        if part is None:
            run.glance(batch, 0.0)
        else:
            run.learn(batch, 0.0, part)
        tower, text = ((weight.detach() - was).norm().item() for weight, was in zip(weights, before, strict=True))
        return tower, text

    alone, glance, both = moved(Part.LOOKING), moved(None), moved(Part.BOTH)
    monkeypatch.setattr("recipes.demo_model.train._TALKING_SHARE", 1.0)
    _, whole = moved(Part.BOTH)
    assert alone[1] == glance[1] == 0
    assert glance[0] == pytest.approx(0.4 * alone[0], rel=0.25)
    assert both[0] == pytest.approx(0.4 * alone[0], rel=0.25)
    assert both[1] == pytest.approx(0.6 * whole, rel=0.1)


def test_rates_fall_in_looking_and_again_in_talking() -> None:
    """Each part of the course begins at nought and comes near its whole."""
    course = Course(look_until=10)
    assert [course.progress(step, 30) for step in (0, 5, 9, 10, 20, 29)] == [0, 0.5, 0.9, 0, 0.5, 0.95]


def test_a_few_steps_lower_the_loss() -> None:
    """The tiny model begins to answer and to see within a hundred steps: both losses fall on a batch it never saw."""
    run = new_run(TOKENIZER, 0, tiny=True)
    batch = Batches(TOKENIZER, 2, COURSE)[0]

    def both() -> tuple[float, float]:
        with torch.no_grad():
            result = losses(run.model, batch, run.heads)
        return result.answers.item(), result.sight.item()

    before = both()
    train(run, TOKENIZER, COURSE, seed=0, steps=120, workers=0)
    after = both()
    assert len(run.history) == 120
    assert run.history[-1][1] < run.history[0][1]
    assert after[0] < 0.7 * before[0]
    assert after[1] < 0.95 * before[1]


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Saving, loading and going on gives the same bits as never stopping, INT4 rounding included."""

    def weights(run: Run) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in run.model.state_dict().items()}

    whole = new_run(TOKENIZER, 0, tiny=True)
    train(whole, TOKENIZER, COURSE, seed=0, steps=6, workers=0)

    first = new_run(TOKENIZER, 0, tiny=True)
    batches, glances = Batches(TOKENIZER, 0, COURSE), Batches(TOKENIZER, 1, COURSE.beside)
    for step in range(3):
        if COURSE.glances_at(step):
            first.glance(glances[step], step / 6)
        first.learn(batches[step], step / 6, COURSE.part(step))
    first.save(tmp_path / "state.pt")
    second = new_run(TOKENIZER, 1, tiny=True)
    second.load(tmp_path / "state.pt")
    train(second, TOKENIZER, COURSE, seed=0, steps=6, workers=0)

    assert second.history == whole.history
    after = weights(second)
    assert all(torch.equal(value, after[name]) for name, value in weights(whole).items())
    assert not list(tmp_path.glob("*.partial"))


def test_letters_are_looked_at_once_both_learn() -> None:
    """A run through all three parts is its steps taken by hand, with a glance before each step in which both learn."""
    course = replace(COURSE, look_until=1, still_until=2)
    whole = new_run(TOKENIZER, 0, tiny=True)
    train(whole, TOKENIZER, course, seed=0, steps=4, workers=0)

    by_hand = new_run(TOKENIZER, 0, tiny=True)
    batches, glances = Batches(TOKENIZER, 0, course), Batches(TOKENIZER, 1, course.beside)
    for step in range(4):
        if course.glances_at(step):
            by_hand.glance(glances[step], course.progress(step, 4))
        by_hand.learn(batches[step], course.progress(step, 4), course.part(step))

    assert by_hand.history == whole.history
    taken = by_hand.model.state_dict()
    assert all(torch.equal(value, taken[name]) for name, value in whole.model.state_dict().items())


def test_int4_rounding_keeps_sixteen_levels_a_block() -> None:
    """Rounded weights stay close, take at most 16 values a block, and rounding them again changes nothing."""
    weight = torch.randn(8, 4 * BLOCK, generator=torch.Generator().manual_seed(0))
    rounded = round_int4(weight)
    for block in rounded.reshape(-1, BLOCK):
        assert len(block.unique()) <= 16
    assert (rounded - weight).abs().max() <= weight.abs().max() / 8
    torch.testing.assert_close(round_int4(rounded), rounded)


def test_int4_rounding_is_computed_with_and_learnt_through() -> None:
    """Rounding changes the loss, and the gradient of a rounded matrix reaches the whole one."""
    run = new_run(TOKENIZER, 0, tiny=True)
    batch = Batches(TOKENIZER, 0, COURSE)[0]
    plain = losses(run.model, batch, arithmetic=Arithmetic(torch.float32)).answers
    rounded = losses(run.model, batch, arithmetic=Arithmetic(torch.float32, rounded=True)).answers
    assert rounded != plain
    assert rounded.item() == pytest.approx(plain.item(), rel=0.05)
    rounded.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
    linears = [m for m in run.model.model.language_model.modules() if isinstance(m, torch.nn.Linear)]
    assert all(linear.weight.grad is not None and linear.weight.grad.any() for linear in linears)


def test_the_patch_embedding_is_learnt_as_a_matrix() -> None:
    """A step moves it as far in every direction; pixel by pixel, brightness would move it far more than letters do."""
    run = new_run(TOKENIZER, 0, tiny=True)
    weight = run.model.model.visual.patch_embed.proj.weight
    before = weight.detach().clone()
    run.learn(Batches(TOKENIZER, 1, COURSE.beside)[0], 0.0, Part.LOOKING)
    moved = torch.linalg.svdvals((weight.detach() - before).flatten(1))
    assert moved.min() > 0.4 * moved.max()


def test_a_stopped_run_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And writes no checkpoint, for it has none."""
    stopped = new_run(TOKENIZER, 0, tiny=True)
    stopped.step = 2
    monkeypatch.setattr(recipes.demo_model.train, "carry_out", lambda *_: stopped)
    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path / "out"), "--ranks", "1", "--steps", "3"])
    with pytest.raises(SystemExit, match="after step 2; go on with --resume"):
        recipes.demo_model.train.main()
    assert not (tmp_path / "out").exists()


def test_to_stop_drawing_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    """A worker with batches on their way that nobody waits for ends without a word."""
    drawn = batches(Batches(TOKENIZER, 0, Course()), range(20), workers=1)
    next(drawn)
    next(drawn)
    drawn.close()  # type: ignore[attr-defined]  # it is a generator
    assert capfd.readouterr().err == ""
