"""Breaks a running system on purpose and compares every answer with the one at rest: `tests/faults/run --help`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import json
import logging
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.faults.bench import SHORT, Bench, Lengths, Row, make_bundle
from tests.faults.scenarios import clients, crowds, hostility, keys, partitions, replicas, resources, soak
from tests.faults.table import table

Scenario = Callable[[Bench], Awaitable[Row]]

TIERS = ("vision", "decoder", "gateway")

SCENARIOS: Mapping[str, Scenario] = {
    **{f"kill-{tier}": functools.partial(replicas.kill, tier=tier) for tier in TIERS},
    **{f"freeze-{tier}": functools.partial(replicas.freeze, tier=tier) for tier in TIERS},
    "rolling": replicas.rolling,
    "cancellations": crowds.cancellations,
    "pictures": crowds.pictures,
    **{f"memory-{tier}": functools.partial(resources.memory, tier=tier) for tier in TIERS},
    "soak": soak.soak,
    "never-reads": clients.never_reads,
    "slow-bodies": clients.slow_bodies,
    **{f"hostile-{attack}": functools.partial(hostility.hostile, attack=attack) for attack in hostility.ATTACKS},
    "streams": functools.partial(crowds.streams, raised=False),
    "streams-raised-limits": functools.partial(crowds.streams, raised=True),
    **{f"partition-{pair}": functools.partial(partitions.partition, pair=pair) for pair in partitions.PAIRS},
    **{f"descriptors-{tier}": functools.partial(resources.descriptors, tier=tier) for tier in TIERS},
    "hostile-keys": keys.keys,
    "full-disk": resources.full_disk,
    "memory-start": resources.memory_start,
}
"""In the order in which they run: those that share a deployment one after the other."""


_IN_PLAIN_TEXT = ("hostile-", "partition-", "descriptors-", "never-reads", "slow-bodies")
"""They speak to sockets themselves, have keys of their own, or other addresses than the certificates."""


def say(line: str) -> None:
    """Print a line now."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201  # what a person reads who started it


def main(words: Sequence[str] | None = None) -> int:
    """Run the scenarios. Returns the exit code."""
    options = _options(words)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # thousands of connections are held here
    if options.list:
        print("\n".join(SCENARIOS))  # noqa: T201
        return 0
    lengths = SHORT if options.short else Lengths()
    given = {
        each.name: value for each in dataclasses.fields(Lengths) if (value := getattr(options, each.name)) is not None
    }
    lengths = dataclasses.replace(lengths, **given)
    names = [name for name in SCENARIOS if not options.only or name in options.only]
    with contextlib.ExitStack() as stack:
        scratch = options.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        scratch = scratch.resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        bundle = options.bundle or make_bundle(stack.enter_context(_folder(scratch)))
        bench = Bench(bundle.resolve(), scratch, lengths, tls=options.tls, processes=options.processes)
        rows = asyncio.run(_run(bench, names, options))
    if not options.json:
        print(table(rows))  # noqa: T201
    return 0 if all(row.passed for row in rows) else 1


@contextlib.contextmanager
def _folder(scratch: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=scratch, prefix="model-") as folder:
        yield Path(folder)


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/faults/run", description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=sorted(SCENARIOS), help="these scenarios")
    parser.add_argument("--list", action="store_true", help="print the names of the scenarios")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each scenario instead of a table")
    parser.add_argument("--short", action="store_true", help="short faults and few requests: tries the harness itself")
    parser.add_argument("--bundle", type=Path, help="serve this bundle instead of a tiny random model")
    parser.add_argument("--scratch", type=Path, help="folder for logs, which is kept")
    help_tls = "TLS on all ports, mTLS between the services, and an API key for each client; leaves out some scenarios"
    parser.add_argument("--tls", action="store_true", help=help_tls)
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes of each gateway")
    defaults = Lengths()
    for each in dataclasses.fields(Lengths):
        default = getattr(defaults, each.name)
        unit = {"soak": "minutes"}.get(each.name, "seconds" if isinstance(default, float) else "requests")
        name = f"--{each.name}-{unit}" if unit != "requests" else f"--{each.name}"
        parser.add_argument(name, dest=each.name, type=type(default), metavar="N", help=f"default {default:g}")
    return parser.parse_args(words)


async def _run(bench: Bench, names: Sequence[str], options: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    try:
        for name in names:
            began = time.monotonic()
            try:
                plain = options.tls and name.startswith(_IN_PLAIN_TEXT)
                row = Row(name, skipped="only in plain text") if plain else await SCENARIOS[name](bench)
            except Exception as error:  # noqa: BLE001  # the other scenarios are to be run
                traceback.print_exc()
                row = Row(name, problems=[f"{type(error).__name__}: {error}"])
                await bench.close()
            rows.append(row)
            if options.json:
                print(json.dumps(dataclasses.asdict(row)), flush=True)  # noqa: T201
            state = "SKIP" if row.skipped else "ok  " if row.passed else "FAIL"
            say(f"{state} {time.monotonic() - began:6.1f} s  {name}  {row.skipped}")
            for problem in row.problems:
                say(f"       {problem}")
    finally:
        await bench.close()
    return rows


if __name__ == "__main__":
    sys.exit(main())
