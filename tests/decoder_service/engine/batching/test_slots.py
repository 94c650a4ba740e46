"""Slots: contents are never mixed, memory is never promised twice, and everything comes back."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from decoder_service.engine import Span
from decoder_service.engine.batching.prefix import Content
from decoder_service.engine.batching.slots import SHORTEST_MATCH, Parked, Slot, Slots

GRANULE = 4
LONG = SHORTEST_MATCH + 4


@dataclass
class Notes:
    """Memory in which each token of a row is a note of what was written there; `moved` counts copied tokens."""

    rows: list[list[object]]
    granule: int = GRANULE
    moved: int = 0

    def copy(self, source: int, target: int, count: int) -> None:
        self.moved += count
        self.rows[target] = self.rows[source][:count]

    def save(self, row: int, count: int) -> list[object]:
        return self.rows[row][:count]

    def restore(self, saved: list[object], row: int) -> None:
        self.rows[row] = list(saved)

    def swap(self, one: int, other: int, *, lengths: tuple[int, int]) -> None:
        self.moved += sum(lengths)
        self.rows[one], self.rows[other] = self.rows[other][: lengths[1]], self.rows[one][: lengths[0]]

    def release(self, row: int, start: int = 0) -> None:
        del self.rows[row][start:]


@dataclass
class Bench:
    """Slots over notes."""

    slot_count: int = 4
    running: int = 3
    budget: int = 400
    caching: bool = True
    parking: int = 0
    growth: int = 1000
    memory: Notes = field(init=False)
    slots: Slots = field(init=False)

    def __post_init__(self) -> None:
        self.memory = Notes([[] for _ in range(self.slot_count)])
        self.slots = Slots(
            self.memory,
            slots=self.slot_count,
            running=self.running,
            budget=self.budget,
            caching=self.caching,
            parking=self.parking,
            growth=self.growth,
        )

    def compute(self, slot: Slot, content: Content, count: int) -> None:
        """Write the next tokens of a content."""
        notes = described(content)[slot.length : slot.length + count]
        self.memory.rows[slot.index][slot.length :] = notes
        slot.length += len(notes)

    def run(self, content: Content, need: int = 0) -> Slot | None:
        """Take a slot and compute the whole prompt."""
        slot = self.slots.take(content, need or len(content) + 1)
        if slot is not None:
            self.compute(slot, content, len(content))
        return slot

    def check(self, slot: Slot) -> None:
        """What lies in a slot is what it stands for."""
        assert self.memory.rows[slot.index][: slot.length] == described(slot.content)[: slot.length]

    @property
    def taken(self) -> int:
        """Memory that is promised or used, as it is taken."""
        lengths = [slot.reserved or slot.length for slot in (*self.slots.running, *self.slots.caches)]
        return sum(-(-length // GRANULE) * GRANULE for length in lengths)


def described(content: Content) -> list[object]:
    """What is to lie in each token's place: its id, or which row of which medium it is."""
    notes: list[object] = content.token_ids.tolist()
    for span in content.media:
        notes[span.start : span.stop] = [(span.key, n) for n in range(span.stop - span.start)]
    return notes


def words(*runs: tuple[int, int], media: tuple[Span, ...] = ()) -> Content:
    """Runs of one word each: (word, how often)."""
    return Content(np.repeat([word for word, _ in runs], [count for _, count in runs]).astype(np.int32), media)


def test_a_follow_up_goes_on_where_the_first_lies() -> None:
    """A finished conversation that is continued keeps its row, and only what is new is computed."""
    bench = Bench()
    first = words((1, LONG))
    slot = bench.run(first, LONG + 5)
    assert slot is not None
    row = slot.index
    answered = first.followed_by([2, 3])
    bench.compute(slot, answered, 2)
    bench.slots.finish(slot, answered)
    longer = answered.followed_by([4, 4, 4])
    again = bench.slots.take(longer, len(longer) + 1)
    assert again is slot
    assert (again.index, again.length) == (row, LONG + 2)
    assert bench.memory.moved == 0
    bench.check(again)


def test_a_shared_beginning_is_copied() -> None:
    """A prompt that shares a part gets a copy, of a running request's row, too; the first is left as it was."""
    bench = Bench()
    one = bench.run(words((1, LONG), (2, 9)))
    other = bench.slots.take(words((1, LONG), (3, 9)), 60)
    assert one is not None
    assert other is not None
    assert other.index != one.index
    assert other.length == LONG
    bench.check(one)
    bench.check(other)


def test_the_last_token_is_always_computed() -> None:
    """A request that is sent again is computed but for one token, whose logits are wanted."""
    bench = Bench()
    prompt = words((1, LONG))
    slot = bench.run(prompt)
    assert slot is not None
    bench.slots.finish(slot, prompt)
    again = bench.slots.take(prompt, LONG + 1)
    assert again is not None
    assert again.length == LONG - 1


def test_media_with_other_keys_do_not_match() -> None:
    """Two images whose tokens are alike: under one key all is found, under another nothing from the image on."""

    def prompt(key: str) -> Content:
        return words((1, LONG), (9, 4), (2, 5), media=(Span(LONG, LONG + 4, (2, 2), key),))

    bench = Bench()
    slot = bench.run(prompt("a"))
    assert slot is not None
    bench.slots.finish(slot, prompt("a"))
    same = bench.slots.take(prompt("a"), 60)
    assert same is not None
    assert same.length == len(prompt("a")) - 1
    other = bench.slots.take(prompt("b"), 60)
    assert other is not None
    assert other.length == LONG
    unknown = bench.slots.take(prompt(""), 60)
    assert unknown is not None
    assert unknown.length == LONG


def test_what_follows_an_unknown_medium_is_not_kept() -> None:
    """A medium without a key can never be found again, so its memory is given back at the end."""
    bench = Bench()
    prompt = words((1, LONG), (9, 4), (2, 50), media=(Span(LONG, LONG + 4, (2, 2), ""),))
    slot = bench.run(prompt)
    assert slot is not None
    bench.slots.finish(slot, prompt)
    assert [cache.length for cache in bench.slots.caches] == [LONG]
    assert len(bench.memory.rows[slot.index]) == LONG


def test_what_does_not_fit_waits_for_running_requests_alone() -> None:
    """A request waits while running ones have promises on the memory; what is only cached makes room, oldest first."""
    bench = Bench(budget=96)
    old, new = words((1, LONG)), words((2, LONG))
    for content in (old, new):
        slot = bench.run(content)
        assert slot is not None
        bench.slots.finish(slot, content)
    assert len(bench.slots.caches) == 2
    first = bench.slots.take(words((3, 5)), 60)
    assert first is not None
    assert [cache.content for cache in bench.slots.caches] == [new]
    assert bench.slots.take(words((4, 5)), 60) is None
    bench.slots.finish(first, None)
    second = bench.slots.take(words((4, 5)), 60)
    assert second is not None


def test_a_cache_that_alone_is_left_is_gone_on_with_in_place() -> None:
    """Where memory is too short for the source and a copy of it, its own row is taken and the rest given up."""
    bench = Bench(budget=100)
    source = words((1, 80))
    slot = bench.run(source)
    assert slot is not None
    bench.slots.finish(slot, source)
    again = bench.slots.take(words((1, 40), (2, 10)), 80)
    assert again is slot
    assert again.length == 40
    assert len(bench.memory.rows[again.index]) == 40
    bench.check(again)


def test_nothing_is_kept_without_caching() -> None:
    """With the cache off every row and all memory are free after a request."""
    bench = Bench(caching=False)
    prompt = words((1, LONG))
    slot = bench.run(prompt)
    assert slot is not None
    bench.slots.finish(slot, prompt)
    assert bench.slots.caches == []
    again = bench.slots.take(prompt, LONG + 1)
    assert again is not None
    assert again.length == 0


def test_memory_is_promised_in_steps() -> None:
    """At first for the prompt and a step, then a step more each time; never more than the request may need."""
    bench = Bench(budget=64, growth=8)
    slot = bench.run(words((1, 20)), need=41)
    assert slot is not None
    assert slot.reserved == 28
    for reserved in (36, 41):
        bench.compute(slot, slot.content.followed_by([7] * 40), slot.reserved - slot.length)
        assert bench.slots.grow(slot, 41)
        assert slot.reserved == reserved


def test_a_cache_gives_way_to_an_answer_that_grows() -> None:
    """The least recently used goes, and no more than must; where none is left, the step is as short as memory is."""
    bench = Bench(budget=80, growth=16, slot_count=5)
    slot = bench.run(words((1, LONG)), need=200)
    assert slot is not None
    assert slot.reserved == LONG + 16
    for word in (2, 3):
        content = words((word, SHORTEST_MATCH))
        other = bench.run(content)
        assert other is not None
        bench.slots.finish(other, content)
    bench.compute(slot, slot.content.followed_by([7] * 16), 16)
    assert bench.slots.grow(slot, 200)
    assert (slot.reserved, [cache.content.token_ids[0] for cache in bench.slots.caches]) == (52, [3])
    other = bench.run(words((4, 5)), need=16)
    assert other is not None
    assert bench.slots.caches == []
    bench.compute(slot, slot.content.followed_by([7] * 32), 16)
    assert bench.slots.grow(slot, 200)
    assert slot.reserved == 64
    bench.compute(slot, slot.content.followed_by([7] * 44), 12)
    assert not bench.slots.grow(slot, 200)
    bench.slots.finish(other, None)
    assert bench.slots.grow(slot, 200)
    assert slot.reserved == 80


def test_what_is_parked_comes_back_as_it_was() -> None:
    """Its row and memory are free meanwhile. What there is no memory for is dropped, and nothing is found of it."""
    bench = Bench(budget=64, growth=8, slot_count=2, running=2, parking=24)
    first, second = bench.run(words((1, 20)), 60), bench.run(words((2, 20)), 60)
    assert first is not None
    assert second is not None
    kept, dropped = bench.slots.park(second), bench.slots.park(first)
    assert (kept.saved is not None, dropped.saved) == (True, None)
    assert (bench.slots.running, bench.taken, bench.memory.rows) == ([], 0, [[], []])
    stranger = bench.run(words((3, 50)))
    assert stranger is not None
    assert bench.slots.resume(kept, 20, 60) is None
    bench.slots.finish(stranger, stranger.content)
    back = bench.slots.resume(kept, 20, 60)
    assert back is not None
    assert (back.length, back.reserved, bench.slots.caches) == (20, 28, [])
    bench.check(back)
    again = bench.slots.resume(dropped, 20, 60)
    assert again is not None
    assert again.length == 0
    assert bench.slots.park(back).saved is not None  # the memory was given back
    third = bench.slots.park(again)
    assert third.saved is not None  # nothing was computed of it


CONTENTS = st.lists(st.tuples(st.integers(1, 2), st.sampled_from([3, SHORTEST_MATCH, 25])), min_size=1, max_size=4)


def take(bench: Bench, prompt: Content, answer: int) -> Slot | None:
    """A slot for a prompt and the first step of its answer: just where that fits beside those that run."""
    need, running = len(prompt) + answer, bench.slots.running
    first = max(min(need, len(prompt) + bench.growth, bench.budget), len(prompt))
    promised = sum(-(-tokens // GRANULE) * GRANULE for tokens in (first, *(slot.reserved for slot in running)))
    taken = bench.slots.take(prompt, need)
    assert (taken is not None) == (promised <= bench.budget and len(running) < bench.running)
    assert taken is None or taken.reserved == first
    return taken


def resume(bench: Bench, parked: list[tuple[Parked, Content]], wanted: dict[int, Content]) -> None:
    """Let the last of those parked go on, if there is one and it fits."""
    if not parked:
        return
    left, whole = parked[-1]
    back = bench.slots.resume(left, left.length, len(whole))
    if back is not None:
        assert back.length == (left.length if left.saved is not None else 0)
        wanted[id(back)] = whole
        parked.pop()


EVENTS = ["take", "take", "finish", "fail", "compute", "compute", "join", "park", "resume"]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(CONTENTS, st.integers(0, 30), st.sampled_from(EVENTS)), max_size=40),
    st.sampled_from([120, 200, 400]),
    st.sampled_from([5, 1000]),
    st.sampled_from([0, 60, 1000]),
)
def test_whatever_happens_contents_and_promises_hold(
    events: list[tuple[list[tuple[int, int]], int, str]], budget: int, growth: int, parking: int
) -> None:
    """Each slot holds just what it stands for; promises never pass the budget; rows side by side; all comes back."""
    bench = Bench(slot_count=5, running=3, budget=budget, growth=growth, parking=parking)
    wanted: dict[int, Content] = {}
    parked: list[tuple[Parked, Content]] = []
    for runs, number, event in events:
        running = bench.slots.running
        slot = running[number % len(running)] if running else None
        promised = sum(-(-s.reserved // GRANULE) * GRANULE for s in running)
        if event == "take":
            prompt = words(*runs)
            taken = take(bench, prompt, number + 1)
            wanted[id(taken)] = prompt.followed_by([7] * (1 + number))
        elif event == "resume":
            resume(bench, parked, wanted)
        elif slot is None:
            continue
        elif event == "compute":
            whole = wanted[id(slot)]
            if slot.length == slot.reserved < len(whole):
                assert bench.slots.grow(slot, len(whole)) == (slot.length % GRANULE > 0 or promised < budget)
            bench.compute(slot, whole, min(number, slot.reserved - slot.length))
        elif event == "join":
            first = bench.slots.side_by_side(running)
            assert sorted(s.index for s in running) == list(range(first, first + len(running)))
        elif event == "park":
            parked.append((bench.slots.park(slot), wanted[id(slot)]))
        else:
            bench.slots.finish(slot, wanted[id(slot)] if event == "finish" else None)
        assert bench.taken <= budget
        assert sum(left.length for left, _ in parked if left.saved is not None) <= parking
        for held in bench.slots.running:
            assert bench.memory.rows[held.index][: held.length] == described(wanted[id(held)])[: held.length]
        for held in bench.slots.caches:
            bench.check(held)
    for slot in bench.slots.running:
        bench.slots.finish(slot, None)
    assert bench.slots.running == []
    assert sum(map(len, bench.memory.rows)) == sum(cache.length for cache in bench.slots.caches)
