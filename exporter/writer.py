"""Writing a directory so that it is either whole or not there."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.bundle import MANIFEST

from .errors import ExportError


def check_target(out: Path, *, force: bool) -> None:
    """Refuse to write where something is that an export must not replace.

    Raises:
        ExportError: `out` is a file, or a directory with content that is not a bundle, or a bundle without `force`.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ExportError(f"{out} is a file or a link: name a directory to be made.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / MANIFEST).is_file():
        raise ExportError(f"{out} has other files in it and is not a bundle: name a new or empty directory.")
    if not force:
        raise ExportError(f"{out} holds a bundle already: name another directory, or use --force to replace it.")


def check_space(out: Path, needed: int) -> None:
    """Refuse to start what the disk cannot hold.

    Raises:
        ExportError: fewer than `needed` bytes are free where `out` is to be.
    """
    existing = next(parent for parent in (out, *out.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ExportError(
            f"The bundle needs about {_gib(needed)} and {existing} has {_gib(free)} free: make room, or name a "
            "directory on another disk."
        )


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give a temporary directory beside `out` that takes its name when the block ends well.

    When it does not, for whatever reason, nothing is left behind: not the temporary directory, nor parents made
    for it. A bundle that is replaced stays in place until the new one is complete.

    Raises:
        ExportError: the disk became full or cannot be written.
    """
    made = [parent for parent in out.parents if not parent.exists()]
    stage = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        stage.mkdir(parents=True)
        yield stage
        _replace(stage, out)
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        for parent in made:
            if parent.is_dir():
                parent.rmdir()
        if isinstance(error, OSError):
            raise _explained(error, out) from error
        raise


def _replace(stage: Path, out: Path) -> None:
    if not out.exists():
        stage.rename(out)
        return
    old = stage.with_suffix(".old")
    out.rename(old)
    try:
        stage.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old)


def _explained(error: OSError, out: Path) -> ExportError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return ExportError(f"The disk became full while {out} was written, and nothing was kept: make room first.")
    reason = error.strerror or str(error)
    where = f" ({os.fspath(error.filename)})" if error.filename else ""
    return ExportError(f"{out} could not be written, and nothing was kept: {reason}{where}.")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
