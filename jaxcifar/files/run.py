"""A run's folder: whose it is, its configuration, and who may write to it."""

import dataclasses
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from jaxcifar.config import FOLDER, TrainConfig, flag, folder_of
from jaxcifar.errors import UserError
from jaxcifar.runtime import environment

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
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
    return last_step(workdir) is not None


def last_step(workdir: Path) -> int | None:
    """The step of the newest checkpoint, or None."""
    names = (path.name for path in (workdir / "checkpoints").glob("*"))
    return max((int(name) for name in names if name.isdigit()), default=None)


def read_config(workdir: Path) -> TrainConfig:
    """What the run was started with.

    Raises:
      UserError: the folder is of no run.
    """
    return TrainConfig.from_json(workdir / CONFIG_FILE)


def write_config(workdir: Path, config: TrainConfig) -> None:
    """Leaves the configuration, and beside it what the run runs on."""
    replace_text(workdir / CONFIG_FILE, config.to_json())
    replace_text(workdir / ENVIRONMENT_FILE, json.dumps(environment.describe(), indent=2) + "\n")


def read_environment(workdir: Path) -> dict[str, Any]:
    """What the run ran on; empty where that is not known."""
    try:
        found = json.loads((workdir / ENVIRONMENT_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def replace_text(path: Path, text: str) -> None:
    """Writes a file whole, so that a killed process cannot leave half of one."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)


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
