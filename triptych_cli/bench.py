"""`triptych bench`: runs benchmarks and prints their reports."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.bundle import Bundle
from triptych_cli.arguments import add_tls, counts, positive, tls_of
from triptych_cli.errors import CommandError

if TYPE_CHECKING:
    from benchmarks.report import Report

# `benchmarks` is imported on demand: a container image with the command line need not have it.


def add_parser(commands: Any, open_bundle: Callable[[Path | None], Bundle]) -> None:
    """Add `bench` to the commands.

    Args:
        commands: The result of `ArgumentParser.add_subparsers`.
        open_bundle: Opens a bundle by its directory; None means the demo bundle.
    """
    bench = commands.add_parser("bench", help="measure the speed on this machine", allow_abbrev=False)
    kinds = bench.add_subparsers(metavar="WHAT", required=True)

    decoder = kinds.add_parser("decoder", help="the engine alone; DECODER_* variables apply", allow_abbrev=False)
    _shared(decoder, _decoder, open_bundle)
    _drawn(decoder)
    decoder.add_argument("--prompts", type=counts, metavar="N,N", help="lengths of the prompts that are only prefilled")
    decoder.add_argument("--streams", type=counts, metavar="N,N", help="numbers of concurrent requests")
    decoder.add_argument("--prompt-tokens", type=positive, metavar="N", help="length of a stream's prompt")
    decoder.add_argument("--new-tokens", type=positive, metavar="N", help="length of a stream's answer")
    decoder.add_argument("--arrivals", type=positive, metavar="N", help="requests of the mixed workload")
    decoder.add_argument("--arrival-seconds", type=float, metavar="S", help="mean time between two requests")
    decoder.add_argument(
        "--stall-prompt", type=positive, metavar="N", help="length of a prompt prefilled during decode"
    )

    vision = kinds.add_parser("vision", help="the encoder alone", allow_abbrev=False)
    _shared(vision, _vision, open_bundle)

    system = kinds.add_parser("system", help="the whole system, through the gateway", allow_abbrev=False)
    _shared(system, _system, open_bundle)
    _drawn(system)
    system.add_argument("--address", metavar="HOST:PORT", help="address of a running gateway (default: start one)")
    add_tls(system)
    system.add_argument("--sizes", type=counts, metavar="N,N", help="edges of the pictures, in pixels")
    system.add_argument("--streams", type=counts, metavar="N,N", help="numbers of concurrent conversations")
    system.add_argument("--stream-size", type=positive, metavar="N", help="edge of their pictures")
    system.add_argument("--new-tokens", type=positive, metavar="N", help="length of their answers")

    gateway = kinds.add_parser("gateway", help="the gateway alone, in front of stubs", allow_abbrev=False)
    _repeated(gateway, _gateway)
    gateway.add_argument("--processes", type=counts, metavar="N,N", help="numbers of processes of the gateway")
    gateway.add_argument("--decoders", type=counts, metavar="N,N", help="numbers of stub decoders")
    gateway.add_argument("--new-tokens", type=counts, metavar="N,N", help="lengths of the answers")
    gateway.add_argument("--clients", type=positive, metavar="N", help="concurrent clients")
    gateway.add_argument("--seconds", type=float, metavar="S", help="duration of a measurement")


def _shared(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], Report],
    open_bundle: Callable[[Path | None], Bundle],
) -> None:
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="the model (default: the demo model)")
    parser.set_defaults(open_bundle=open_bundle)
    _repeated(parser, measure)


def _repeated(parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], Report]) -> None:
    parser.add_argument("--repeats", type=positive, metavar="N", help="number of measurements of each value")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.set_defaults(command=_run, measure=measure, picture=None)


def _drawn(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--picture", type=Path, metavar="PATH", help="also draw the curves (.png, .svg)")


def _run(options: argparse.Namespace) -> None:
    from benchmarks.errors import BenchError  # noqa: PLC0415

    try:
        _bench(options)
    except BenchError as error:
        raise CommandError(str(error)) from error


def _bench(options: argparse.Namespace) -> None:
    from benchmarks import picture  # noqa: PLC0415
    from benchmarks.machine import Machine  # noqa: PLC0415

    if options.picture is not None:
        picture.check()
    machine = Machine.here()  # before the benchmark itself causes load
    report = options.measure(options)
    print(json.dumps(report.document(machine), ensure_ascii=False) if options.json else report.text(machine))  # noqa: T201
    if options.picture is not None:
        picture.draw(report.curves, options.picture, title=f"{report.subject['model']}, {machine.line}")


def _given(options: argparse.Namespace, plan: type[Any]) -> dict[str, Any]:
    """The fields of a plan that the command line sets."""
    names = plan.__dataclass_fields__
    return {name: value for name, value in vars(options).items() if name in names and value is not None}


def _decoder(options: argparse.Namespace) -> Report:
    from benchmarks import decoder, engines  # noqa: PLC0415
    from benchmarks.report import Report  # noqa: PLC0415

    bundle = options.open_bundle(options.bundle)
    plan = decoder.DecoderPlan(**_given(options, decoder.DecoderPlan))

    async def measure() -> Report:
        async with engines.running(bundle) as loaded:
            info = loaded.engine.info
            results = await decoder.run(loaded.engine, bundle, plan, context_length=loaded.limits.context_length)
        subject = {"model": bundle.model.id, "precision": bundle.decoder.precision, **vars(info)}
        return Report("decoder", subject, plan, results, decoder.tables(results), decoder.curves(results))

    return asyncio.run(measure())


def _vision(options: argparse.Namespace) -> Report:
    from benchmarks import vision  # noqa: PLC0415
    from benchmarks.report import Report, table_of  # noqa: PLC0415

    bundle = options.open_bundle(options.bundle)
    given = {} if options.repeats is None else {"repeats": options.repeats}
    results = vision.run(bundle, **given)
    return Report("vision", {"model": bundle.model.id}, given, results, [table_of("Encoder", results)])


def _system(options: argparse.Namespace) -> Report:
    from benchmarks import system  # noqa: PLC0415
    from benchmarks.report import Report  # noqa: PLC0415
    from triptych import launcher  # noqa: PLC0415
    from triptych.client import AsyncClient  # noqa: PLC0415

    plan = system.SystemPlan(**_given(options, system.SystemPlan))

    tls = tls_of(options) if options.address is not None else None

    async def measure(address: str) -> tuple[str, system.SystemResults]:
        async with AsyncClient(address, tls=tls) as client:
            (model, *_) = await client.models()
            return model, await system.run(client, plan)

    if options.address is not None:
        model, results = asyncio.run(measure(options.address))
    else:
        bundle = options.open_bundle(options.bundle)
        started = launcher.Plan(bundle.root, grpc_port=0, http_port=0)
        model, results = asyncio.run(launcher.run_while(started, lambda addresses: measure(addresses.grpc)))
    subject = {"model": model, "gateway": options.address or "started for this"}
    return Report("system", subject, plan, results, system.tables(results), system.curves(results))


def _gateway(options: argparse.Namespace) -> Report:
    from benchmarks import gateway  # noqa: PLC0415
    from benchmarks.report import Report  # noqa: PLC0415

    plan = gateway.GatewayPlan(**_given(options, gateway.GatewayPlan))
    results = asyncio.run(gateway.run(plan))
    return Report("gateway", {"tiers": "stubs"}, plan, results, gateway.tables(results))
