"""What every scenario does around its own fault: a deployment, load, the ledger, and the check afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import exporter
from tests.checkpoints import make_checkpoint
from tests.faults.asking import Answers, Asker, DisagreementError, Gateways, Load, answers_at_rest
from tests.faults.ledger import Counts, Kind, Ledger
from tests.faults.network import Hosts, Network, network
from tests.faults.questions import questions
from tests.faults.security import secured
from tests.faults.services import Deployment, NotServingError, Plan, deployed, healthz


@dataclass
class Row:
    """One line of the table.

    Attributes:
        scenario: Its name.
        counts: What became of the requests; None where there were none, or the scenario could not be run.
        before: Right answers a second before the fault.
        during: The same while the fault lasted.
        recovery: Seconds until throughput was back; None if it never was, or nothing was measured.
        since: What the recovery is counted from: `fault` or `end`.
        figures: More of what was measured.
        problems: What should not have been.
        skipped: Why it was not run.
    """

    scenario: str
    counts: Counts | None = None
    before: float | None = None
    during: float | None = None
    recovery: float | None = None
    since: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    skipped: str = ""

    @property
    def passed(self) -> bool:
        """Whether there was nothing that should not have been."""
        return not self.problems


@dataclass(frozen=True)
class Lengths:
    """How long and how many.

    Attributes:
        freeze: Seconds of a SIGSTOP.
        partition: Seconds of a partition.
        settle: Seconds of load before a fault.
        after: Seconds of load after it.
        soak: Minutes of the soak.
        cancellations: Requests of `cancellations`.
        streams: Of `streams`.
        pictures: Of `pictures`.
        mutations: Requests of each kind of the hostile round.
    """

    freeze: float = 60.0
    partition: float = 10.0
    settle: float = 5.0
    after: float = 15.0
    soak: float = 30.0
    cancellations: int = 10_000
    streams: int = 2_000
    pictures: int = 200
    mutations: int = 1_000


SHORT = Lengths(
    freeze=8, partition=4, settle=2, after=4, soak=1, cancellations=500, streams=100, pictures=40, mutations=50
)


def make_bundle(folder: Path) -> Path:
    """The bundle of a tiny random checkpoint, in INT4: it answers thousands of tokens a second."""
    checkpoint = make_checkpoint(folder / "checkpoint", context=8192)
    bundle = exporter.export(
        checkpoint, folder / "bundle", measure=False, calibrate=False, model_id="tiny", progress=False
    )
    return bundle.root


class Bench:
    """Holds the deployment that scenarios share, and the answers at rest.

    Args:
        bundle: The model.
        scratch: A folder.
        lengths: How long and how many.
        tls: Whether all ports have TLS, the tiers take the gateway's certificate alone, and each client has a key.
        processes: Of each gateway.
    """

    def __init__(self, bundle: Path, scratch: Path, lengths: Lengths, *, tls: bool = False, processes: int = 1) -> None:
        self.bundle = bundle
        self.scratch = scratch
        self.lengths = lengths
        self.answers: Answers = {}
        self._stack = contextlib.AsyncExitStack()
        self._shared: tuple[str, Deployment] | None = None
        self._network: Network | None = None
        self._folders = 0
        self._security = secured(self.folder("tls")) if tls else None
        self._processes = processes

    def folder(self, name: str) -> Path:
        """A new folder."""
        self._folders += 1
        made = self.scratch / f"{self._folders:02d}-{name}"
        made.mkdir(parents=True)
        return made

    async def shared(self, *, gateways: int = 1) -> Deployment:
        """The deployment of two vision services, two decoders and one or two gateways; started if it is not there."""
        return await self._kept(f"{gateways} gateways", gateways)

    async def parted(self) -> tuple[Deployment, Network]:
        """The same with two gateways, and each process in a network namespace of its own; with the network.

        Raises:
            NetworkError: The network cannot be made here.
        """
        deployment = await self._kept("network", 2, namespaces=True)
        assert self._network is not None
        return deployment, self._network

    async def _kept(self, key: str, gateways: int, *, namespaces: bool = False) -> Deployment:
        if self._shared is None or self._shared[0] != key:
            await self.close()
            hosts: Hosts | None = None
            if namespaces:
                tiers = {"vision_service": 2, "decoder_service": 2, "gateway": gateways}
                self._network, hosts = self._stack.enter_context(network(tiers))
            started = deployed(self._whole(Plan(self.bundle, gateways=gateways)), self.folder("shared"), hosts)
            self._shared = key, await self._stack.enter_async_context(started)
            await self.learn(self._shared[1].gateways)
        return self._shared[1]

    async def close(self) -> None:
        """Stop the shared deployment."""
        self._shared = None
        await self._stack.aclose()

    @contextlib.asynccontextmanager
    async def own(self, plan: Plan, name: str, *, keys: Sequence[str] = ()) -> AsyncIterator[Deployment]:
        """A deployment of one scenario; the shared one is stopped before.

        Args:
            plan: What to start.
            name: Of the folder of its logs.
            keys: API keys of the clients, if the plan has its own.
        """
        await self.close()
        async with deployed(self._whole(plan), self.folder(name)) as deployment:
            if keys:
                deployment.gateways = dataclasses.replace(deployment.gateways, keys=keys)
            await self.learn(deployment.gateways)
            yield deployment

    def _whole(self, plan: Plan) -> Plan:
        return dataclasses.replace(plan, security=self._security, processes=self._processes)

    async def learn(self, gateways: Gateways) -> None:
        """The answers at rest: from the first deployment that is asked, and the same from all others.

        Raises:
            DisagreementError: Another deployment has other answers.
        """
        found = await answers_at_rest(gateways, list(self.answers) or questions(), rounds=1 if self.answers else 2)
        if self.answers and found != self.answers:
            raise DisagreementError("a new deployment answers otherwise than the first at rest")
        self.answers = found

    async def under_load(
        self,
        name: str,
        deployment: Deployment,
        fault: Callable[[Load], Awaitable[None]],
        *,
        allowed: Collection[str] = (),
        cut: bool = False,
        since: str = "fault",
        clients: int = 16,
    ) -> Row:
        """Steady load, a fault in the middle, and the load's end.

        Args:
            name: Of the scenario.
            deployment: Where.
            fault: Breaks something and mends it.
            allowed: Reasons with which requests may be refused.
            cut: Whether a client's connection may break.
            since: Recovery is counted from the `fault`, or from its `end`.
            clients: How many ask at once.
        """
        asker = Asker(name, self.answers)
        row = Row(name, since=since)
        async with Load(asker, deployment.gateways, clients=clients) as load:
            if not await load.answered(50):
                row.problems.append("there were no 50 answers in 120 s before the fault")
            settled = time.monotonic()
            await asyncio.sleep(self.lengths.settle)
            began = time.monotonic()
            try:
                await fault(load)
            except NotServingError as error:
                row.problems.append(str(error))
            ended = time.monotonic()
            await asyncio.sleep(self.lengths.after)
        ledger = asker.ledger
        row.before = round(ledger.rate(settled, began), 1)
        row.during = round(ledger.rate(began, ended), 1) if ended - began > 0.5 else None
        row.recovery = ledger.recovered(row.before, since=began if since == "fault" else ended, until=load.ended)
        if row.recovery is None:
            row.problems.append(f"throughput was not back {self.lengths.after:g} s after the fault's end")
        return await self.judged(row, ledger, deployment, allowed=allowed, cut=cut)

    async def judged(
        self, row: Row, ledger: Ledger, deployment: Deployment, *, allowed: Collection[str] = (), cut: bool = False
    ) -> Row:
        """Add the counts and what is wrong with them, and check the system after the scenario."""
        counts = row.counts = ledger.counts(deployment.moved())
        bad = {"untyped": counts.untyped, "wrong": counts.wrong, "hung": counts.hung, "lost": counts.lost}
        if not cut:
            bad["cut"] = counts.cut
        row.problems += [f"{number} {what}" for what, number in bad.items() if number]
        kinds = [Kind.UNTYPED, Kind.WRONG, Kind.HUNG] + ([] if cut else [Kind.CUT])
        row.problems += ledger.examples(kinds)
        row.problems += [f"{n} refused with {reason}" for reason, n in counts.refused.items() if reason not in allowed]
        if any(reason not in allowed for reason in counts.refused):
            row.problems += ledger.examples([Kind.REFUSED], 2)
        row.problems += await self.checked(deployment)
        return row

    async def checked(self, deployment: Deployment) -> list[str]:
        """What is wrong with a system at rest: after a scenario nothing may be."""
        problems: list[str] = []
        try:
            await deployment.mend()
            gateways = deployment.gateways
            statuses = [await asyncio.to_thread(healthz, url, gateways.ca) for url in gateways.http]
            problems += [f"/healthz says {status}" for status in statuses if status != 200]
            async with asyncio.timeout(120):
                await self.learn(deployment.gateways)
        except (NotServingError, DisagreementError, OSError, TimeoutError) as error:
            problems.append(f"afterwards: {type(error).__name__}: {error}")
        problems += [f"{number} tracebacks in the log of {name}" for name, number in deployment.tracebacks().items()]
        if problems and self._shared is not None and self._shared[1] is deployment:
            await self.close()  # the next scenario is not to suffer for this one
        return problems

    def size(self, folder: Path) -> int:
        """Bytes of the files in a folder."""
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    def copy_bundle(self, to: Path) -> Path:
        """A copy of the bundle."""
        return Path(shutil.copytree(self.bundle, to))
