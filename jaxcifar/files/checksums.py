"""Tells a damaged checkpoint before anything reads it: ``SHA256SUMS``, as sha256sum writes it."""

import hashlib
from pathlib import Path

from jaxcifar.errors import UserError

NAME = "SHA256SUMS"


def write(folder: Path) -> None:
    """Notes the checksum of every file in a folder; ``sha256sum -c`` can check them, too."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256(path)}  {path.relative_to(folder)}\n" for path in files]
    (folder / NAME).write_text("".join(lines))


def check(folder: Path) -> None:
    """Compares a folder with its checksums, if it has any.

    Raises:
      UserError: a file is missing or differs.
    """
    sums = folder / NAME
    for line in sums.read_text(errors="replace").splitlines() if sums.exists() else ():
        expected, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file() or sha256(path) != expected:
            raise UserError(f"{path} is damaged or missing: copy the whole folder again")


def sha256(path: Path) -> str:
    """A file's checksum, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
