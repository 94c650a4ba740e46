"""The command line: `triptych up`, `ask`, `key`, `export`, `evaluate`, `demo`, `bench`.

Exit codes: 0 success; 2 wrong usage; 130 Ctrl-C; 1 any other error, with one line on stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from serving.bundle import Bundle, BundleError
from serving.errors import ServiceError
from serving.signals import INTERRUPTED, Terminated, importing, interrupt_on_signals
from triptych import launcher
from triptych.bundles import demo_bundle
from triptych_cli import ask, bench, evaluate, key
from triptych_cli.arguments import positive
from triptych_cli.errors import CommandError


class _Parser(argparse.ArgumentParser):
    """A parser that reports wrong usage in one line on stderr, with exit code 2; also used for the commands."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Arguments after the program's name; None takes the process's own.

    Returns:
        The exit code.
    """
    try:
        # An export that is ended cleans up. `up` sets its own handlers.
        interrupt_on_signals()
        options = _parser().parse_args(arguments)
        options.command(options)
    except (CommandError, launcher.LaunchError, BundleError) as error:
        return _fail(str(error))
    except ServiceError as error:
        return _fail(error.message)
    except KeyboardInterrupt as error:
        code = _fail("interrupted")
        return code if isinstance(error, Terminated) else INTERRUPTED
    except BrokenPipeError:
        # The reader has closed the pipe (`triptych ask … | head`), so the flush at exit must not write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"cannot write the output: {error.strerror or error}")
    return 0


def _fail(sentence: str) -> int:
    if sentence:
        print(f"triptych: {' '.join(sentence.split())}", file=sys.stderr)  # noqa: T201
    return 1


def _version() -> str:
    try:
        return importlib.metadata.version("triptych")
    except importlib.metadata.PackageNotFoundError:  # run from its sources, with the dependencies alone
        return "(not installed)"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="triptych", description="Qwen3-VL as three services.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"triptych {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    up = commands.add_parser("up", help="run the whole system as local processes", allow_abbrev=False)
    up.add_argument("--bundle", type=Path, metavar="DIR", help="the model (default: the demo model)")
    up.add_argument("--grpc-port", type=port_number, default=50051, metavar="N", help="gRPC port (default %(default)s)")
    up.add_argument("--http-port", type=port_number, default=8080, metavar="N", help="HTTP port (default %(default)s)")
    up.add_argument("--vision-replicas", type=positive, default=1, metavar="N", help="vision services (default 1)")
    up.add_argument("--decoder-replicas", type=positive, default=1, metavar="N", help="decoder services (default 1)")
    up.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="warning")
    up.set_defaults(command=_up)

    ask.add_parser(commands)
    key.add_parser(commands)

    export = commands.add_parser("export", help="make a bundle from a checkpoint", allow_abbrev=False)
    export.add_argument("checkpoint", metavar="CHECKPOINT_OR_HF_ID")
    export.add_argument("bundle", type=Path, metavar="BUNDLE_DIR")
    export.add_argument("--precision", choices=("int4", "fp32"), default="int4", help="default %(default)s")
    export.add_argument(
        "--recipe",
        choices=("small", "balanced", "fine"),
        help="which matrices of the int4 graph have 8 bits: none, those that gain the most (balanced, the default), or "
        "more of them",
    )
    export.add_argument("--block-size", type=int, choices=(16, 32, 64, 128, 256), help="of the int4 graph; default 32")
    export.add_argument(
        "--accuracy-level",
        type=int,
        choices=range(5),
        help="of the int4 graph: 4 rounds activations to 8 bits (the default), 1 keeps float32",
    )
    export.add_argument(
        "--phases",
        type=phases,
        metavar="LIST",
        help="graphs of an int4 bundle: int4,int8 (the default) or int4, for the small footprint",
    )
    export.add_argument(
        "--no-smoothing",
        dest="smooth",
        action="store_false",
        default=None,
        help="quantize without smoothing outlier channels before",
    )
    calibration = export.add_mutually_exclusive_group()
    calibration.add_argument(
        "--calibrate",
        nargs="?",
        const=True,
        type=Path,
        metavar="DIR",
        help="choose scales and smoothing by pictures and prompts: those in DIR, or those of the package (the default)",
    )
    calibration.add_argument(
        "--no-calibrate",
        dest="calibrate",
        action="store_false",
        default=None,
        help="choose scales and smoothing by the weights alone",
    )
    export.add_argument(
        "--no-measuring",
        dest="measure",
        action="store_false",
        help="do not measure the accuracy of a bfloat16 or int8 encoder; int8 then needs a setting",
    )
    export.add_argument("--model-id", metavar="NAME", help="name that clients see (default: the checkpoint's)")
    export.add_argument("--revision", help="revision of a Hugging Face repository")
    export.add_argument("--force", action="store_true", help="replace BUNDLE_DIR if it exists")
    export.set_defaults(command=_export, wrong_usage=export.error)

    evaluate.add_parser(commands)

    demo = commands.add_parser("demo", help="start the demo, ask about its example files, stop", allow_abbrev=False)
    demo.set_defaults(command=_demo)

    bench.add_parser(commands, _bundle)
    return parser


def port_number(text: str) -> int:
    """A port number."""
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is not a port (0 to 65535)")
    return port


def phases(text: str) -> tuple[str, ...]:
    """The graphs of a bundle."""
    chosen = tuple(text.split(","))
    if sorted(chosen) not in (["int4"], ["int4", "int8"]):
        raise argparse.ArgumentTypeError(f"{text!r} must be int4 or int4,int8")
    return chosen


def _up(options: argparse.Namespace) -> None:
    bundle = _bundle(options.bundle)
    plan = launcher.Plan(
        bundle=bundle.root,
        grpc_port=options.grpc_port,
        http_port=options.http_port,
        vision_replicas=options.vision_replicas,
        decoder_replicas=options.decoder_replicas,
        log_level=options.log_level,
    )

    def ready(addresses: launcher.Addresses) -> None:
        print(f"ready grpc={addresses.grpc} http={addresses.http} model={bundle.model.id}", flush=True)  # noqa: T201

    asyncio.run(launcher.run(plan, ready))


def _bundle(given: Path | None) -> Bundle:
    return Bundle.open(given if given is not None else demo_bundle())


_FOR_INT4 = {
    "recipe": "--recipe",
    "block_size": "--block-size",
    "accuracy_level": "--accuracy-level",
    "smooth": "--no-smoothing",
}
"""Flags of `export` that have a meaning at int4 alone, by the option that each sets."""


def _export(options: argparse.Namespace) -> None:
    chosen = {name: getattr(options, name) for name in _FOR_INT4 if getattr(options, name) is not None}
    if options.precision == "fp32" and chosen:
        flag = _FOR_INT4[next(iter(chosen))]
        options.wrong_usage(f"argument {flag}: has no meaning at --precision fp32; leave out one of the two")
    with importing():
        import exporter  # noqa: PLC0415  # takes seconds to import, and other commands do not need it

    try:
        bundle = exporter.export(
            options.checkpoint,
            options.bundle,
            precision=options.precision,
            phases=options.phases,
            calibrate=options.calibrate,
            measure=options.measure,
            model_id=options.model_id,
            revision=options.revision,
            force=options.force,
            **chosen,
        )
    except exporter.ExportError as error:
        raise CommandError(str(error)) from error
    print(f"exported {bundle.model.id} to {bundle.root}")  # noqa: T201
    if bundle.decoder.adapter is False:
        print("The checkpoint has no vision adapter (vision-lora): images are answered by the model's own weights.")  # noqa: T201


def _demo(_: argparse.Namespace) -> None:
    from triptych_cli import demo  # noqa: PLC0415  # imports Pillow, which a client need not have

    demo.run(_bundle(None).root)
