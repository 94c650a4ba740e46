"""What became of every request, and how soon throughput came back."""

from __future__ import annotations

import collections
import enum
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


class Kind(enum.Enum):
    """How a request ended."""

    RIGHT = "right"
    """Complete, and the same as at rest."""
    REFUSED = "refused"
    """A typed error, with a delay where its reason promises one; what came before it begins the right answer."""
    CANCELLED = "cancelled"
    """The client left on purpose; what had come begins the right answer."""
    CUT = "cut"
    """The client's connection to the gateway broke: no server was there to send a reason."""
    UNTYPED = "untyped"
    """An error without one of the documented reasons, or without the delay that its reason promises."""
    WRONG = "wrong"
    """Other tokens or other text than at rest."""
    HUNG = "hung"
    """Not ended some seconds after its own deadline."""


@dataclass(frozen=True)
class Outcome:
    """How one request ended.

    Attributes:
        request_id: Its id, which the services log.
        door: The door that it took, as in `grpc`.
        kind: How it ended.
        began: When it was sent first, on the monotonic clock.
        ended: When it was over.
        attempts: How often the client sent it.
        reason: Of an error.
        detail: What a person needs to find the fault.
    """

    request_id: str
    door: str
    kind: Kind
    began: float
    ended: float
    attempts: int = 1
    reason: str = ""
    detail: str = ""

    @property
    def seconds(self) -> float:
        """From the first attempt to the end."""
        return self.ended - self.began


@dataclass
class Ledger:
    """All requests of a scenario. A request that was opened and not closed is lost."""

    opened: dict[str, float] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)

    def open(self, request_id: str, now: float) -> None:
        """Note that a request is about to be sent."""
        if request_id in self.opened:
            raise ValueError(f"{request_id} is opened twice")
        self.opened[request_id] = now

    def close(self, outcome: Outcome) -> None:
        """Note how it ended."""
        if outcome.request_id not in self.opened:
            raise ValueError(f"{outcome.request_id} was never opened")
        self.outcomes.append(outcome)

    def counts(self, moved: Iterable[str] = ()) -> Counts:
        """What became of all requests.

        Args:
            moved: Ids of the requests that the gateway sent to a second replica.
        """
        elsewhere = set(moved)
        kinds = collections.Counter(outcome.kind for outcome in self.outcomes)
        right = [outcome for outcome in self.outcomes if outcome.kind is Kind.RIGHT]
        again = sum(outcome.attempts > 1 or outcome.request_id in elsewhere for outcome in right)
        refused = collections.Counter(o.reason for o in self.outcomes if o.kind is Kind.REFUSED)
        closed = {outcome.request_id for outcome in self.outcomes}
        times = sorted(outcome.seconds for outcome in right)
        return Counts(
            sent=len(self.opened),
            right=len(right) - again,
            moved=again,
            refused=dict(refused.most_common()),
            cancelled=kinds[Kind.CANCELLED],
            cut=kinds[Kind.CUT],
            untyped=kinds[Kind.UNTYPED],
            wrong=kinds[Kind.WRONG],
            hung=kinds[Kind.HUNG],
            lost=len(self.opened.keys() - closed),
            median_seconds=round(statistics.median(times), 3) if times else None,
            longest_seconds=round(times[-1], 2) if times else None,
        )

    def examples(self, kinds: Sequence[Kind], most: int = 3) -> list[str]:
        """Some requests that ended in one of these ways, for people."""
        found = [outcome for outcome in self.outcomes if outcome.kind in kinds]
        return [f"{o.request_id} {o.kind.value} over {o.door}: {o.reason}: {o.detail}"[:300] for o in found[:most]]

    def rate(self, start: float, end: float) -> float:
        """Right answers a second that ended in this span of time."""
        if end <= start:
            return 0.0
        return sum(o.kind is Kind.RIGHT and start <= o.ended < end for o in self.outcomes) / (end - start)

    def recovered(self, rate: float, *, since: float, until: float, window: float = 2.0) -> float | None:
        """Seconds after which throughput is back: the next two seconds have at least half of a rate.

        Args:
            rate: Right answers a second before the fault.
            since: When the fault began, or ended.
            until: When the load ended.
            window: Seconds over which answers are counted.

        Returns:
            The seconds, in steps of a tenth; None if it never came back.
        """
        step = 0
        while (start := since + step / 10) + window <= until:
            if self.rate(start, start + window) >= rate / 2:
                return step / 10
            step += 1
        return None


@dataclass(frozen=True)
class Counts:
    """What became of the requests of a scenario.

    Attributes:
        sent: Requests.
        right: Right answers at the first attempt, from the first replica.
        moved: Right answers after the client or the gateway had tried again.
        refused: Typed errors, by reason.
        cancelled: Requests whose client left on purpose.
        cut: Requests whose connection to the gateway broke.
        untyped: Errors without a reason.
        wrong: Wrong answers.
        hung: Requests without an end.
        lost: Requests that nothing is known of.
        median_seconds: Of right answers, from the first attempt.
        longest_seconds: Likewise.
    """

    sent: int
    right: int
    moved: int
    refused: dict[str, int]
    cancelled: int
    cut: int
    untyped: int
    wrong: int
    hung: int
    lost: int
    median_seconds: float | None
    longest_seconds: float | None
