"""What a command writes: refused before any work, made aside, and moved into its place whole."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxcifar.errors import UserError


def require_place(path: Path, source: Path) -> None:
    """Checks that an output has a folder to be in, and is not its own input.

    Raises:
      UserError: it has not, or is.
    """
    if not path.absolute().parent.is_dir():
        raise UserError(f"there is no folder {path.absolute().parent}: make it first")
    if source.exists() and source.resolve().is_relative_to(path.resolve()):
        raise UserError(f"{path} is the input itself, or around it: choose another name")


def require_free(path: Path, *, force: bool, checkpoint: bool = False) -> None:
    """Checks that nothing is lost when an output is written.

    Args:
      path: the output.
      force: a file may be replaced.
      checkpoint: so may the folder of a checkpoint.

    Raises:
      UserError: something is there.
    """
    if not os.path.lexists(path):
        return
    if not force:
        raise UserError(f"{path} exists already: choose another name, or --force to replace it")
    if path.is_dir() and not (checkpoint and (path / "_CHECKPOINT_METADATA").exists()):
        raise UserError(f"{path} is a folder and no checkpoint: choose a name inside it")


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Gives a name of the same suffix to write to; only a body that ends well replaces the target.

    Raises:
      UserError: the folder cannot be written to.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise UserError(
            f"{target.absolute().parent} cannot be written to ({error.strerror}): choose another"
            " folder"
        ) from error
    with folder as name:
        new = Path(name) / f"new{target.suffix}"
        yield new
        _replace(target, new, old=Path(name) / "old")


def _replace(target: Path, new: Path, *, old: Path) -> None:
    """Moves ``new`` to ``target``, and what is there to ``old``."""
    existed = target.exists()
    if existed:
        target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        if existed:
            old.rename(target)
        raise
