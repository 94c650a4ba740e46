"""`triptych evaluate`: how far a bundle is from a reference, and how many questions of a file it answers rightly."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.bundle import Bundle
from serving.errors import ServiceError
from serving.media import MAX_PIXELS
from triptych.errors import GATEWAY_UNAVAILABLE
from triptych_cli.arguments import add_tls, positive, tls_of, whole
from triptych_cli.errors import CommandError
from triptych_cli.progress_bar import ProgressBar, is_terminal

if TYPE_CHECKING:
    from benchmarks.report import Table
    from evaluation.accuracy import Accuracy, Score
    from evaluation.divergence import Comparison, Found
    from evaluation.questions import QuestionFile

# `evaluation` is imported when something is evaluated: an image that holds the command line need not hold it.

FORMAT = 1
"""Counted up when the JSON changes its shape."""

_ENCODERS = ("float32", "bfloat16", "float16", "int8")
_PHASES = ("prefill", "decode")
_COMPARED = 32


def add_parser(commands: Any) -> None:
    """Add `evaluate` to the commands.

    Args:
        commands: What `ArgumentParser.add_subparsers` gave.
    """
    evaluate = commands.add_parser("evaluate", help="measure how good a bundle is", allow_abbrev=False)
    evaluate.add_argument("bundle", type=Path, metavar="BUNDLE")
    evaluate.add_argument(
        "--reference",
        metavar="CHECKPOINT|BUNDLE",
        help="compare the next token with this: transformers in float32 on a checkpoint, or an fp32 bundle",
    )
    evaluate.add_argument(
        "--questions", type=Path, metavar="FILE", help="measure accuracy on this, one JSON object a line"
    )
    evaluate.add_argument(
        "--encoder",
        nargs="+",
        choices=_ENCODERS,
        metavar="TYPE",
        help="types that the encoder computes in (default: what this machine can compute; the questions are answered "
        f"once, in the type that the vision service chooses): {', '.join(_ENCODERS)}",
    )
    evaluate.add_argument(
        "--phase", nargs="+", choices=_PHASES, metavar="PHASE", help="compare only in this phase: prefill, decode"
    )
    evaluate.add_argument("--limit", type=positive, metavar="N", help="take the first N questions")
    evaluate.add_argument(
        "--compare",
        type=positive,
        default=_COMPARED,
        metavar="N",
        help="compare with the reference on N questions at most, spread over the file (default %(default)s)",
    )
    evaluate.add_argument("--address", metavar="HOST:PORT", help="of a running gateway (default: start one)")
    add_tls(evaluate)
    evaluate.add_argument(
        "--concurrency", type=positive, default=4, metavar="N", help="questions asked at once (default %(default)s)"
    )
    evaluate.add_argument(
        "--max-tokens", type=positive, default=64, metavar="N", help="most tokens of an answer (default %(default)s)"
    )
    evaluate.add_argument(
        "--max-pixels", type=whole(1, MAX_PIXELS), metavar="N", help="greatest area of a picture after resizing"
    )
    evaluate.add_argument("--json", action="store_true", help="print one JSON object with every answer instead")
    evaluate.set_defaults(command=_run, wrong_usage=evaluate.error)


def _run(options: argparse.Namespace) -> None:
    _check_usage(options)
    from evaluation.errors import EvaluationError  # noqa: PLC0415

    try:
        _evaluate(options)
    except EvaluationError as error:
        raise CommandError(str(error)) from error


def _check_usage(options: argparse.Namespace) -> None:
    """End with wrong usage where flags do not go together."""
    if options.reference is None and options.questions is None:
        options.wrong_usage("name what to compare with (--reference), what to ask (--questions), or both")
    if options.reference is None and options.phase is not None:
        options.wrong_usage("argument --phase: it is for a comparison with --reference")
    if options.questions is None and options.address is not None:
        options.wrong_usage("argument --address: it is asked the questions of --questions")
    if options.address is not None and options.encoder is not None and options.reference is None:
        options.wrong_usage("argument --encoder: what runs at --address has chosen its type")


def _evaluate(options: argparse.Namespace) -> None:
    from benchmarks.report import plain  # noqa: PLC0415
    from evaluation.questions import QuestionFile  # noqa: PLC0415

    file = None
    if options.questions is not None:
        file = QuestionFile(options.questions, options.limit)
        with _bar("pictures", len(file.questions)) as advance:
            file.check_pictures(advance)
    bundle = Bundle.open(options.bundle)
    if options.encoder is not None and not bundle.has_encoder:
        raise CommandError(f"{bundle.model.id} takes text only and has no encoder: leave --encoder out")
    comparison = _compare(options, bundle, file) if options.reference is not None else None
    accuracies = _ask(options, bundle, file) if file is not None else None
    if options.json:
        document = {
            "format": FORMAT,
            "model": bundle.model.id,
            "bundle": str(bundle.root),
            "divergence": plain(comparison),
            "accuracy": plain(accuracies),
        }
        print(json.dumps(document, ensure_ascii=False))  # noqa: T201
        return
    tables = [] if comparison is None else [_comparison_table(comparison)]
    for accuracy in accuracies or []:
        tables += _accuracy_tables(accuracy)
    print("\n\n".join(table.text for table in tables))  # noqa: T201
    for name, why in (comparison.left_out if comparison is not None else {}).items():
        print(f"\nnot compared with the encoder in {name}: {why}")  # noqa: T201


def _compare(options: argparse.Namespace, bundle: Bundle, file: QuestionFile | None) -> Comparison:
    from evaluation.answers import prompt_of  # noqa: PLC0415
    from evaluation.divergence import PHASES, compare  # noqa: PLC0415
    from evaluation.prompts import Shown, built_in, built_in_texts  # noqa: PLC0415
    from evaluation.reference import open_reference  # noqa: PLC0415
    from exporter.progress import Progress, quiet  # noqa: PLC0415

    bars = Progress()
    reference = open_reference(options.reference, bundle, show_progress=bars.enabled)
    if file is None:
        shown = (built_in() if bundle.has_encoder else built_in_texts())[: options.limit][: options.compare]
    else:
        every = max(1, len(file.questions) // options.compare)
        chosen = file.questions[::every][: options.compare]
        shown = [Shown(file.pictures(question), prompt_of(question)) for question in chosen]
    with quiet():
        return compare(
            bundle,
            reference,
            shown,
            encoders=options.encoder,
            phases=options.phase or PHASES,
            max_pixels=options.max_pixels,
            bars=bars,
        )


def _ask(options: argparse.Namespace, bundle: Bundle, file: QuestionFile) -> list[Accuracy]:
    from evaluation.accuracy import Asking, accuracy_at, accuracy_of_bundle  # noqa: PLC0415

    asking = Asking(options.concurrency, options.max_tokens, options.max_pixels)
    if options.address is not None:
        try:
            with _bar("questions", len(file.questions)) as advance:
                return [accuracy_at(options.address, bundle, file, advance, asking=asking, tls=tls_of(options))]
        except ServiceError as error:
            if error.reason == GATEWAY_UNAVAILABLE:
                raise CommandError(f"no gateway answers at {options.address}") from error
            raise
    found = []
    for encoder in options.encoder or [None]:
        title = "questions" if encoder is None else f"questions, encoder in {encoder}"
        with _bar(title, len(file.questions)) as advance:
            found.append(accuracy_of_bundle(bundle, file, advance, encoder=encoder, asking=asking))
    return found


@contextlib.contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Count questions on stderr, where that is a terminal."""
    done = 0
    with ProgressBar(sys.stderr, enabled=is_terminal(sys.stderr)) as bar:
        bar.show(title, 0, total)

        def advance(units: int) -> None:
            nonlocal done
            done += units
            bar.show(f"{title} {done}/{total}", done, total)

        yield advance


def _comparison_table(comparison: Comparison) -> Table:
    from benchmarks.report import Table  # noqa: PLC0415

    head, rows = ["graph", "encoder"], []
    phases = [phase for phase in _PHASES if getattr(comparison.rows[0], phase) is not None]
    for phase in phases:
        head += [f"{phase} KL", "largest", "same token", "positions"]
    for row in comparison.rows:
        cells = [row.graphs, row.encoder]
        for phase in phases:
            cells += _found(getattr(row, phase))
        rows.append(cells)
    return Table(f"Next token, against {comparison.reference}, on {comparison.prompts} prompts", head, rows)


def _found(found: Found) -> list[str]:
    if not found.positions:
        return ["-", "-", "-", "0"]
    numbers = ["no numbers", "-"] if found.mean is None else [f"{found.mean:.2e}", f"{found.largest:.2e}"]
    return [*numbers, f"{found.agreement:.1%}", str(found.positions)]


def _accuracy_tables(accuracy: Accuracy) -> list[Table]:
    from benchmarks.report import Table  # noqa: PLC0415

    encoder = "" if accuracy.encoder is None else f", encoder in {accuracy.encoder}"
    head = ["questions", "asked", "accuracy", "95% interval"]
    rows = [[name or "(none)", *_score(score)] for name, score in accuracy.categories.items()]
    counted = f"{accuracy.without_letter} without a letter, {accuracy.cut} cut off, {accuracy.failed} refused"
    return [Table(f"Accuracy{encoder} ({counted})", head, [*rows, ["all", *_score(accuracy.total)]])]


def _score(score: Score) -> list[str]:
    low, high = score.interval
    return [str(score.questions), f"{score.accuracy:.1%}", f"{low:.1%} to {high:.1%}"]
