"""Writing a directory so that it is either whole or not there."""

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.bundle import MANIFEST

from .errors import ExportError, ExportProblem

_PARTIAL, _REPLACED = ".partial", ".old"


def check_target(out: Path, *, force: bool) -> None:
    """Refuse to write where something is that an export must not replace.

    Raises:
        ExportError: `out` is a file, or a directory with content that is not a bundle, or a bundle without `force`.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ExportError(ExportProblem.TARGET_IS_FILE, out=out)
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / MANIFEST).is_file():
        raise ExportError(ExportProblem.TARGET_IS_FULL, out=out)
    if not force:
        raise ExportError(ExportProblem.TARGET_IS_BUNDLE, out=out)


def check_space(out: Path, needed: int) -> None:
    """Refuse to start what the disk cannot hold.

    Raises:
        ExportError: fewer than `needed` bytes are free where `out` is to be.
    """
    existing = existing_parent(out)
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ExportError(ExportProblem.NO_ROOM, needed=gib(needed), folder=existing, free=gib(free))


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give a temporary directory beside `out` that takes its name when the block ends well.

    When it does not, for whatever reason, nothing is left behind: not the temporary directory, nor parents made
    for it. A bundle that is replaced stays in place until the new one is complete. What an export left that was
    killed outright, so that it could not clean up, is removed first.

    Raises:
        ExportError: the disk became full or cannot be written.
    """
    made = [parent for parent in out.parents if not parent.exists()]
    stage, lock = out, None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        stage, lock = _make_stage(out)
        yield stage
        _replace(stage, out)
    except BaseException as error:
        if lock is not None:
            shutil.rmtree(stage, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # not made, or another export uses it
                parent.rmdir()
        if isinstance(error, OSError):
            raise _explained(error, out) from error
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _make_stage(out: Path) -> tuple[Path, int]:
    """Make the temporary directory and lock it: the lock is what tells it from one that was left behind.

    Another export may find it before it is locked and remove it; then another one is made.
    """
    while True:
        stage = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}")
        stage.mkdir()
        try:
            descriptor = os.open(stage, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        if _lock(descriptor) is not False and stage.exists():
            return stage, descriptor
        os.close(descriptor)


def _sweep(out: Path) -> None:
    """Remove the temporary directories beside `out` that nobody has locked."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.????????{_PARTIAL}"):
        with contextlib.suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            if _lock(descriptor):
                shutil.rmtree(left, ignore_errors=True)
            os.close(descriptor)
    if out.exists():  # else an export was killed between two renames, and this is the bundle that it was to replace
        for left in out.parent.glob(f".{glob.escape(out.name)}.????????{_REPLACED}"):
            shutil.rmtree(left, ignore_errors=True)


def _lock(descriptor: int) -> bool | None:
    """Lock an open directory until it is closed or the process ends; None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _replace(stage: Path, out: Path) -> None:
    if not out.exists():
        stage.rename(out)
        return
    old = stage.with_suffix(_REPLACED)
    out.rename(old)
    try:
        stage.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _explained(error: OSError, out: Path) -> ExportError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return ExportError(ExportProblem.DISK_FULL, out=out)
    reason = error.strerror or str(error)
    where = f" ({os.fspath(error.filename)})" if error.filename else ""
    return ExportError(ExportProblem.NOT_WRITTEN, out=out, reason=reason, where=where)


def existing_parent(path: Path) -> Path:
    """The path itself or the nearest directory above that is there."""
    return next(parent for parent in (path, *path.parents) if parent.exists())


def gib(size: int) -> str:
    """A number of bytes for a sentence."""
    return f"{size / 2**30:.1f} GiB"
