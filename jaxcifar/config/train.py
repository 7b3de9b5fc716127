"""The configuration of a training run: one frozen dataclass, checked in one place.

The command line is derived from it (``cli.py``), and it is saved as JSON beside the
checkpoints. This module imports nothing heavy.
"""

import dataclasses
import json
import math
import os
from fractions import Fraction
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from jaxcifar.errors import UserError

ModelName = Literal["vgg16", "vgg16_bn", "resnet50_layer4"]
DatasetName = str  # cifar10, cifar100, digits or folder:PATH
MODEL_NAMES: tuple[str, ...] = get_args(ModelName)
AUGMENTATIONS = {"cifar10": "crop-flip", "cifar100": "crop-flip", "digits": "none"}
FOLDER = "folder:"
DATASETS = ", ".join((*AUGMENTATIONS, f"{FOLDER}PATH"))


REQUIRED: Any = dataclasses.MISSING


def option(
    default: Any,
    help: str,
    *,
    may_change: bool = False,
    of_process: bool = False,
    positional: bool = False,
    metavar: str = "PATH",
) -> Any:
    """A field with its help.

    Args:
      default: ``REQUIRED``, or the value of a flag that is not given.
      help: shown by ``--help``.
      may_change: a resumed run may set it anew.
      of_process: it is of one process of a run, and not saved.
      positional: given by its place on the command line, without a flag.
      metavar: what ``--help`` calls the value of a text.
    """
    metadata = {
        "help": help,
        "may_change": may_change or of_process,
        "of_process": of_process,
        "positional": positional,
        "metavar": metavar,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run. The defaults are the original program's.

    Raises:
      UserError: a value is of the wrong type or out of range.
    """

    model: ModelName = option("vgg16", "the network")
    dataset: DatasetName = option(
        "cifar10",
        f"the data, one of {DATASETS}; digits is scikit-learn's, ships with it and needs no"
        " network; a folder holds your own images of any size in PATH/train/CLASS and"
        " PATH/test/CLASS",
        metavar="NAME",
    )
    data_dir: str | None = option(
        None,
        "where the data is or will be downloaded to: a TFDS folder, or one that holds a CIFAR"
        " archive or its unpacked folder (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)",
        may_change=True,
    )
    workdir: str | None = option(
        None,
        "where checkpoints and logs go (default: runs/DATASET-MODEL-TIME)",
        may_change=True,
    )
    resume: bool = option(
        False,
        "continue the run in --workdir exactly where its last checkpoint stands; its saved"
        " options hold, and only --epochs and how it reports may be given anew",
        may_change=True,
    )
    init_from: str | None = option(
        None,
        "start from these weights: a torch .ckpt/.pt/.pth, a .safetensors file, a ported"
        " checkpoint or a run's folder; Adam's moments go on where the source has them; where it"
        " has another number of classes, the last layer starts anew",
    )
    ema: bool = option(False, "of a torch file in --init-from, take the exponential moving average")
    epochs: int = option(1, "passes over the training images", may_change=True)
    batch_size: int = option(
        100, "images a step; what is left of an epoch after the last full batch is left out"
    )
    learning_rate: float | None = option(
        None,
        "Adam's initial learning rate (default: 0.001, or where the torch optimizer in"
        " --init-from stopped)",
    )
    decay_rate: float = option(
        1 / 3,
        "factor on the learning rate at each decay; takes fractions, as in 1/3 (1: no decay)",
    )
    decay_epochs: int = option(
        20,
        "epochs between two decays (the original's code decays every 20th epoch, its report"
        " says every epoch: --decay-epochs 1)",
    )
    dropout_rate: float = option(0.5, "dropout before VGG's linear layers; the ResNet has none")
    augment: Literal["auto", "crop-flip", "crop", "none"] = option(
        "auto",
        "random crop (4 pixels of zero padding) and horizontal flip; auto: both for cifar10 and"
        " cifar100, none for digits, and crop alone for a folder, since a mirrored letter or sign"
        " is another one (crop-flip where mirrored images are as good)",
    )
    val_fraction: float = option(
        0.0,
        "share of the training images held out, the same ones whatever the seed; with it the"
        " checkpoint with the best validation accuracy is kept, too",
    )
    precision: Literal["float32", "bfloat16"] = option(
        "float32",
        "what the network computes in; parameters are float32 either way. On a CPU bfloat16"
        " makes the ResNet faster, VGG16 not, and that only where the processor has instructions"
        " for it (avx512_bf16, amx_bf16)",
    )
    seed: int = option(0, "seeds the weights, the order of the images, crops, flips and dropout")
    compile_cache: bool = option(
        True,
        "do not keep compiled programs in the user's cache folder for the next run",
        may_change=True,
    )
    on_nonfinite: Literal["stop", "skip"] = option(
        "stop",
        "at a loss that is not finite, stop, or skip the updates whose loss or gradients are not"
        " and count them",
        may_change=True,
    )
    coordinator: str | None = option(
        None,
        "to train with several processes, HOST:PORT of process 0, the same for all; auto takes"
        " this and the next two from Slurm, Kubernetes, Open MPI or the TPU",
        of_process=True,
        metavar="HOST:PORT",
    )
    num_processes: int | None = option(None, "how many processes train together", of_process=True)
    process_id: int | None = option(None, "which of them this one is, from 0", of_process=True)
    report: bool = option(
        True, "leave no report with pictures in --workdir/report", may_change=True
    )
    log_every: int = option(100, "steps between two reports of the loss", may_change=True)
    checkpoint_every: int = option(
        0, "steps between two checkpoints, besides one after each epoch (0: none)", may_change=True
    )
    keep: int = option(3, "how many of the last checkpoints are kept", may_change=True)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, hint = getattr(self, field.name), without_none(hints[field.name])
            if hint is float and type(value) is int:
                object.__setattr__(self, field.name, float(value))
            elif value is None and hint is not hints[field.name]:
                continue
            elif not _is_instance(value, hint):
                self._reject(field.name, _describe(hint))
        require_dataset(self.dataset)
        for name in ("epochs", "batch_size", "decay_epochs", "log_every", "keep"):
            if getattr(self, name) < 1:
                self._reject(name, "at least 1")
        if self.checkpoint_every < 0:
            self._reject("checkpoint_every", "0 or more")
        if not 0 <= self.seed < 2**32:
            self._reject("seed", "between 0 and 4294967295")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            self._reject("learning_rate", "a positive number")
        if not 0 < self.decay_rate <= 1:
            self._reject("decay_rate", "above 0 and at most 1")
        for name in ("dropout_rate", "val_fraction"):
            if not 0 <= getattr(self, name) < 1:
                self._reject(name, "at least 0 and below 1")
        if self.ema and self.init_from is None:
            raise UserError("--ema chooses among the weights of --init-from: give that, too")
        given = [self.num_processes is not None, self.process_id is not None]
        if any(given) and (self.coordinator in (None, "auto") or not all(given)):
            raise UserError("--coordinator HOST:PORT, --num-processes and --process-id go together")
        if self.coordinator not in (None, "auto"):
            self._check_processes()
        if self.resume and self.workdir is None:
            raise UserError("--resume needs --workdir, the folder of the run to continue")

    def _check_processes(self) -> None:
        host, _, port = str(self.coordinator).rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            self._reject("coordinator", "HOST:PORT or auto")
        if self.num_processes is None or self.process_id is None:
            raise UserError(
                f"--coordinator {self.coordinator} needs --num-processes and --process-id"
            )
        if self.num_processes < 1:
            self._reject("num_processes", "at least 1")
        if not 0 <= self.process_id < self.num_processes:
            self._reject("process_id", f"from 0 to {self.num_processes - 1}")

    def _reject(self, name: str, expected: str) -> None:
        raise UserError(f"{flag(name)} must be {expected}, got {getattr(self, name)!r}")

    @property
    def augments(self) -> bool:
        """Whether images are cropped, and perhaps flipped, with ``auto`` resolved."""
        return self._augmentation != "none"

    @property
    def flips(self) -> bool:
        """Whether they are flipped, too."""
        return self._augmentation == "crop-flip"

    @property
    def _augmentation(self) -> str:
        auto = AUGMENTATIONS.get(self.dataset, "crop")
        return auto if self.augment == "auto" else self.augment

    def to_json(self) -> str:
        """The options as JSON text for ``from_json``, without those of one process."""
        own = {f.name for f in dataclasses.fields(self) if f.metadata["of_process"]}
        saved = {n: value for n, value in dataclasses.asdict(self).items() if n not in own}
        return json.dumps(saved, indent=2) + "\n"

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """Reads a saved configuration.

        Raises:
          UserError: the file is missing, is not one, or holds a value that is not allowed.
        """
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a saved training configuration: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """Which weights a command reads."""

    checkpoint: str = option(
        REQUIRED,
        "a run's folder, a ported checkpoint, a torch .ckpt/.pt/.pth or a .safetensors file",
    )
    ema: bool = option(False, "of a torch file, take the exponential moving average")


def require_dataset(name: str) -> None:
    """Checks the name of a data set.

    Raises:
      UserError: there is none of it.
    """
    if name not in AUGMENTATIONS and not (name.startswith(FOLDER) and name != FOLDER):
        raise UserError(f"--dataset must be one of {DATASETS}, got {name!r}")


def folder_of(dataset: str) -> Path:
    """The path in ``folder:PATH``; a shell leaves the ``~`` in it alone."""
    return Path(os.path.expanduser(dataset.removeprefix(FOLDER)))


def flag(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")


def fraction(text: str) -> float:
    """Reads a number that may be written as a fraction: ``0.5``, ``1e-3``, ``1/3``."""
    try:
        return float(text)
    except ValueError:
        try:
            return float(Fraction(text))
        except (ValueError, ZeroDivisionError, OverflowError):
            raise ValueError(f"not a number: {text!r}") from None


def choices(hint: Any) -> tuple[str, ...]:
    """The allowed values of a ``Literal`` field; empty for any other."""
    return get_args(hint) if get_origin(hint) is Literal else ()


def without_none(hint: Any) -> Any:
    """The type of a field that may be None, without the None."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    return next(kind for kind in get_args(hint) if kind is not NoneType)


def _is_instance(value: Any, hint: Any) -> bool:
    if choices(hint):
        return value in choices(hint)
    if hint is int:
        return type(value) is int  # a bool is not a count
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    if choices(hint):
        return "one of " + ", ".join(choices(hint))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names[hint]
