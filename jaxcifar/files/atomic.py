"""Output files and folders: checked before any work, and replaced only when they are complete."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxcifar.errors import UserError


def check_output(path: Path, *, source: Path, force: bool, checkpoint: bool = False) -> None:
    """Refuse an output path that cannot be written or would destroy something.

    ``force`` allows replacing a file, and with ``checkpoint`` a checkpoint's folder.
    """
    if not path.absolute().parent.is_dir():
        raise UserError(f"there is no folder {path.absolute().parent}: create it first")
    if source.exists() and source.resolve().is_relative_to(path.resolve()):
        raise UserError(f"{path} is the input itself, or contains it: choose another name")
    if not os.path.lexists(path):
        return
    if not force:
        raise UserError(f"{path} exists already: choose another name, or --force to replace it")
    if path.is_dir() and not (checkpoint and (path / "_CHECKPOINT_METADATA").exists()):
        raise UserError(f"{path} is a folder and no checkpoint: choose a name inside it")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary path with the target's suffix; it replaces the target on success."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise UserError(
            f"{target.absolute().parent} cannot be written to ({error.strerror}): choose another"
            " folder"
        ) from error
    with folder as name:
        new, old = Path(name) / f"new{target.suffix}", Path(name) / "old"
        yield new
        if target.is_dir() or new.is_dir():  # only files can be replaced in one step
            with suppress(FileNotFoundError):
                target.rename(old)
        try:
            new.replace(target)
        except BaseException:
            with suppress(FileNotFoundError):
                old.rename(target)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a file in one step, so that a killed process cannot leave half of it."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)
