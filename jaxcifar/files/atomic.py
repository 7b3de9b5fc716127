"""Output files and folders: checked before any work, and replaced only when they are complete."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxcifar.errors import UserError

NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


def check_output(path: Path, *, source: Path, force: bool, checkpoint: bool = False) -> None:
    """Refuse a bad output; ``force`` replaces a file, and with ``checkpoint`` a checkpoint."""
    if not path.absolute().parent.is_dir():
        raise UserError(f"there is no folder {path.absolute().parent}: create it first")
    if source.exists() and source.resolve().is_relative_to(path.resolve()):
        raise UserError(f"{path} is the input itself, or contains it: choose another name")
    if os.path.lexists(path) and not force:
        raise UserError(f"{path} exists already: choose another name, or --force to replace it")
    if path.is_symlink():
        raise UserError(f"{path} is a symbolic link: give {path.resolve()} itself, or remove it")
    if os.path.lexists(path) and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is no regular file: choose another name")
    if path.is_dir() and not (checkpoint and (path / "_CHECKPOINT_METADATA").exists()):
        raise UserError(f"{path} is a folder and no checkpoint: choose a name inside it")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary path with the target's suffix; it replaces the target on success."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        problem = f"{target.absolute().parent} cannot be written to ({error.strerror})"
        raise UserError(f"{problem}: choose another folder") from error
    with folder as name:
        new, old = Path(name) / f"new{target.suffix}", Path(name) / "old"
        try:
            yield new
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            problem = f"{target} could not be written ({error.strerror})"
            raise UserError(f"{problem}: free some space, or choose another folder") from error
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
