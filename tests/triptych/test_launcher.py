"""What the launcher would start."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.cores import usable_cores
from triptych import launcher
from triptych.launcher import Addresses, LaunchError, Plan, Replica, System


def _values(replicas: list[Replica], name: str) -> set[str | None]:
    return {(replica.environment or {}).get(name) for replica in replicas}


def test_replicas_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tier alone has all cores; of several replicas each has its share, and at least one."""
    for name in ("VISION_THREADS", "DECODER_THREADS"):
        monkeypatch.delenv(name, raising=False)
    system = System(Plan(Path("bundle"), grpc_port=0, http_port=0, vision_replicas=1, decoder_replicas=64))
    assert _values(system.vision, "VISION_THREADS") == {str(usable_cores())}
    assert _values(system.decoders, "DECODER_THREADS") == {str(max(1, usable_cores() // 64))}


def test_what_the_environment_says_of_threads_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """`DECODER_THREADS=3 triptych up` gives each decoder three threads, and says nothing of vision."""
    monkeypatch.setenv("DECODER_THREADS", "3")
    monkeypatch.delenv("VISION_THREADS", raising=False)
    system = System(Plan(Path("bundle"), grpc_port=0, http_port=0, decoder_replicas=2))
    assert _values(system.decoders, "DECODER_THREADS") == {"3"}
    assert _values(system.vision, "VISION_THREADS") == {str(usable_cores())}


def test_no_port_is_given_twice() -> None:
    """Every service of a plan has a port of its own, and the gateway calls the tiers at theirs."""
    system = System(Plan(Path("bundle"), grpc_port=0, http_port=0, vision_replicas=3, decoder_replicas=3))
    addresses = [replica.address for replica in (*system.vision, *system.decoders, system.gateway)]
    assert len({*addresses, system.addresses.http.removeprefix("http://")}) == 8


def test_a_plan_tells_the_models_services_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher's own environment reaches them, and what the plan says is over it."""
    monkeypatch.setenv("VISION_DTYPE", "float32")
    for given, expected in (({}, "float32"), ({"VISION_DTYPE": "bfloat16"}, "bfloat16")):
        system = System(Plan(Path("bundle"), grpc_port=0, http_port=0, environment=given))
        assert _values(system.vision, "VISION_DTYPE") == {expected}


def test_a_plan_may_leave_the_environments_settings_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """`triptych demo` starts whatever is set for another system; other variables, and the plan's own, stay."""
    monkeypatch.setenv("VISION_DEVICE", "cuda")
    monkeypatch.setenv("decoder_slots", "none")
    monkeypatch.setenv("GATEWAY_TLS_CERT", "none.pem")
    monkeypatch.setenv("SOME_OTHER", "1")
    for ignored in (False, True):
        plan = Plan(
            Path("bundle"), grpc_port=0, http_port=0, environment={"DECODER_THREADS": "3"}, default_settings=ignored
        )
        system = System(plan)
        expected = (None, None, None) if ignored else ("cuda", "none", "none.pem")
        names = ("VISION_DEVICE", "decoder_slots", "GATEWAY_TLS_CERT")
        for replica in (*system.vision, *system.decoders, system.gateway):
            environment = replica.environment or {}
            assert tuple(environment.get(name) for name in names) == expected
            assert environment["SOME_OTHER"] == "1"
        assert system.addresses.http.startswith("http://" if ignored else "https://")
        assert _values(system.decoders, "DECODER_THREADS") == {"3"}


def test_the_encoder_gives_way_to_the_decoder() -> None:
    """On busy cores, running answers go before pictures."""
    system = System(Plan(Path("bundle"), grpc_port=0, http_port=0))
    assert all(replica.nice > 0 for replica in system.vision)
    assert all(replica.nice == 0 for replica in (*system.decoders, system.gateway))


async def test_work_runs_while_the_system_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work's result is returned and its failure raised; a signal cancels it. The system is stopped each time."""
    stopped, cancelled = [], []

    class Standing:
        """A system without services: it is up at once."""

        def __init__(self, plan: Plan) -> None:
            self.addresses = Addresses("grpc", "http")

        async def start(self) -> None:
            pass

        async def keep(self, on_event: Callable[[str], None]) -> None:
            await asyncio.Event().wait()

        async def stop(self) -> None:
            stopped.append(self.addresses.grpc)

    monkeypatch.setattr(launcher, "System", Standing)
    plan = Plan(Path("bundle"))

    async def answer(addresses: Addresses) -> str:
        return addresses.grpc

    async def fail(addresses: Addresses) -> str:
        raise ValueError(addresses.grpc)

    async def interrupted(addresses: Addresses) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(addresses.grpc)
        return ""

    assert await launcher.run_while(plan, answer) == "grpc"
    with pytest.raises(ValueError, match="grpc"):
        await launcher.run_while(plan, fail)
    with pytest.raises(LaunchError, match="interrupted"):
        await launcher.run_while(plan, interrupted)
    assert cancelled == ["grpc"]
    assert stopped == ["grpc"] * 3
