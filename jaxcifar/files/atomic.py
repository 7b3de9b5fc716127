"""Output files and folders: checked before any work, and replaced only when they are complete."""

import errno
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxcifar.errors import UserError

# What a file system can refuse; other errors belong to what is read or printed meanwhile.
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}
REFUSALS |= {errno.ENOENT, errno.ENOTDIR, errno.EEXIST}
ADVICE = "free some space, or choose another folder"


def check_output(path: Path, *, source: Path, force: bool) -> None:
    """Refuse a bad output; ``force`` replaces a file or a checkpoint."""
    if not path.absolute().parent.is_dir():
        raise UserError(f"there is no folder {path.absolute().parent}: create it first")
    if source.exists() and source.resolve().is_relative_to(path.resolve()):
        raise UserError(f"{path} is the input itself, or contains it: choose another name")
    replaceable = path.is_file() or (path / "_CHECKPOINT_METADATA").exists()
    if os.path.lexists(path) and not (force and replaceable and not path.is_symlink()):
        advice = "choose another name, or --force to replace a file or checkpoint"
        raise UserError(f"{path} exists already: {advice}")


@contextmanager
def explained(path: Path, kind: type[Exception] = OSError, advice: str = ADVICE) -> Iterator[None]:
    """Raise ``UserError`` if a path cannot be written to; of ``OSError`` only for ``REFUSALS``."""
    try:
        yield
    except kind as error:
        refused = kind is Exception or getattr(error, "errno", None) in REFUSALS
        if isinstance(error, UserError) or not refused:
            raise
        time.sleep(1 if kind is Exception else 0)  # Orbax's threads would make folders again
        reason = getattr(error, "strerror", None) or f"{error!s:.120}"
        raise UserError(f"{path} cannot be written to ({reason}): {advice}") from error


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary path with the target's name; it replaces the target on success."""
    prefix = f".{target.name}."
    with explained(target), tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as name:
        new, old = Path(name) / target.name, Path(name) / f"{target.name}.old"
        yield new
        if os.path.lexists(target) and (target.is_dir() or new.is_dir()):
            target.rename(old)  # only files can be replaced in one step
        try:
            new.replace(target)
        finally:
            if not os.path.lexists(target) and os.path.lexists(old):
                old.rename(target)


def write_text(path: Path, text: str) -> None:
    """Write a file in one step, so that a killed process cannot leave half of it."""
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")
