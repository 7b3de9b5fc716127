"""A run's folder: whose it is, its configuration, and who may write to it."""

import dataclasses
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from jaxcifar.config import FOLDER, TrainConfig, flag, folder_of
from jaxcifar.errors import UserError

CONFIG_FILE = "config.json"
LOCK_FILE = "lock"


def choose(config: TrainConfig) -> Path:
    """The run's folder; refuses to mix two runs in one."""
    name = f"{_short(config.dataset)}-{config.model}-{datetime.now():%Y%m%d-%H%M%S}"
    workdir = Path(config.workdir or Path("runs") / name)
    if config.resume:
        saved = read_config(workdir)
        for field in dataclasses.fields(TrainConfig):
            old, new = getattr(saved, field.name), getattr(config, field.name)
            moved = field.name == "dataset" and old.startswith(FOLDER) and new.startswith(FOLDER)
            if new not in (old, None) and not field.metadata["may_change"] and not moved:
                raise UserError(
                    f"{flag(field.name)} {new} is not what {workdir} was started with ({old}):"
                    " leave it out, or start a run in another --workdir"
                )
    elif has_checkpoint(workdir):
        raise UserError(
            f"{workdir} holds a run already: continue it with --resume, or choose another --workdir"
        )
    return workdir


def _short(dataset: str) -> str:
    """A data set's name as part of a file's: of a folder its own name, without odd characters."""
    if not dataset.startswith(FOLDER):
        return dataset
    own = re.sub(r"[^\w.]+", "_", Path(os.path.abspath(folder_of(dataset))).name)
    return own.strip("._")[:40] or "folder"


def has_checkpoint(workdir: Path) -> bool:
    """Whether there is something to resume."""
    folder = workdir / "checkpoints"
    return folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir())


def read_config(workdir: Path) -> TrainConfig:
    """What the run was started with.

    Raises:
      UserError: the folder is of no run.
    """
    return TrainConfig.from_json(workdir / CONFIG_FILE)


def write_config(workdir: Path, config: TrainConfig) -> None:
    """Replaces the file whole, so that a killed process cannot leave half of one."""
    new = workdir / f"{CONFIG_FILE}.new"
    new.write_text(config.to_json())
    new.replace(workdir / CONFIG_FILE)


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Makes the folder, and keeps other runs out of it; the system frees a dead process's lock.

    Raises:
      UserError: another run is in it, or it cannot be written to.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / LOCK_FILE).open("a+")
    except OSError as error:
        raise UserError(
            f"{workdir} cannot be written to ({error.strerror}): choose another --workdir"
        ) from error
    with lock as file:
        try:
            import fcntl
        except ImportError:  # no such locks on Windows
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"another run writes to {workdir} ({file.read().strip()}): wait for its end,"
                " or choose another --workdir"
            ) from None
        except OSError:  # a file system without locks
            yield
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
