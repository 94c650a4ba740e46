"""The short form of `tests/faults/run`: under load replicas freeze, drain and die, and every answer is right."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.asking import Answers, Asker, Load, answers_at_rest
from tests.faults.bench import make_bundle
from tests.faults.questions import questions
from tests.faults.services import Deployment, Plan, deployed

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),  # on a busy machine each start takes long
]


@dataclass
class Running:
    """A deployment, and what it answers at rest."""

    deployment: Deployment
    answers: Answers

    def load(self, name: str) -> Load:
        """Four clients, which leave the processors time to start services."""
        return Load(Asker(name, self.answers), self.deployment.gateways, clients=4, pause=0.1)

    def judge(self, load: Load, *, refused: Collection[str] = ()) -> None:
        """Fail unless every request is accounted for, and nothing came but right answers and these refusals."""
        counts = load.ledger.counts(self.deployment.moved())
        bad = (counts.untyped, counts.wrong, counts.hung, counts.lost, counts.cut)
        assert bad == (0, 0, 0, 0, 0), (counts, load.ledger.outcomes)
        assert counts.refused.keys() <= set(refused), counts
        assert not self.deployment.tracebacks()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """Two vision services, two decoders and a gateway, as processes."""
    folder: Path = tmp_path_factory.mktemp("faults")
    async with deployed(Plan(make_bundle(folder)), folder) as deployment:
        yield Running(deployment, await answers_at_rest(deployment.gateways, questions()))


async def test_a_decoder_is_frozen(running: Running) -> None:
    """Its connections stay open and nothing answers: the other takes over, long before any deadline."""
    victim = running.deployment.decoders[1]
    async with running.load("frozen") as load:
        assert await load.answered(10)
        victim.signal(signal.SIGSTOP)
        try:
            assert await load.answered(20)
        finally:
            victim.signal(signal.SIGCONT)
        assert await load.answered(10)
    running.judge(load, refused=["DECODER_UNAVAILABLE"])


async def test_one_drains_and_one_is_killed(running: Running) -> None:
    """SIGTERM of a vision service loses nothing; kill -9 of a decoder ends only answers that had begun there, typed."""
    async with running.load("drained and killed") as load:
        assert await load.answered(10)
        assert await running.deployment.vision[1].stop() == 0
        running.deployment.decoders[1].kill()
        assert await load.answered(20)
    running.judge(load, refused=["DECODER_UNAVAILABLE"])
