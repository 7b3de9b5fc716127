"""The options of a training run. The defaults are the original program's."""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from jaxcifar.config.options import Options, Positive, Range, flag, option, optional, parse_saved
from jaxcifar.errors import UserError, regular_file

MODEL_NAMES = ("vgg16", "vgg16_bn", "resnet50_layer4")
MODELS = f"{', '.join(MODEL_NAMES)}, FILE.py:NAME or package.module:NAME"
AUTO_AUGMENTATION = {"cifar10": "crop-flip", "cifar100": "crop-flip", "digits": "none"}
FOLDER_PREFIX = "folder:"
DATASETS = ", ".join((*AUTO_AUGMENTATION, f"{FOLDER_PREFIX}PATH"))
CONFIG_FILE = "config.json"  # in a run's directory
COMPILE_CACHE = "do not keep compiled programs in the user's cache directory"

# What a resumed run may change, and what belongs to one process of a run and is not saved.
MAY_CHANGE = {
    *("data_dir", "workdir", "resume", "epochs", "limit_steps", "compile_cache"),
    *("on_nonfinite", "report", "log_every", "checkpoint_every", "keep"),
}
OF_PROCESS = ("coordinator", "num_processes", "process_id")


def is_own(model: str) -> bool:
    """Whether this names the user's own code, which is run only if the user names it."""
    return model not in MODEL_NAMES


# The user's own code and folder need not exist.
_MODEL = re.compile(f"{'|'.join(MODEL_NAMES)}|.+:[^:]+", re.DOTALL)
Model = Annotated[str, Range(f"one of {MODELS}", _MODEL.fullmatch)]
_DATASET = re.compile(f"{'|'.join(AUTO_AUGMENTATION)}|{FOLDER_PREFIX}.+", re.DOTALL)
DataSet = Annotated[str, Range(f"one of {DATASETS}", _DATASET.fullmatch)]
_PORT = r"[1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5]"
Address = Annotated[str, Range("HOST:PORT or auto", re.compile(f"auto|.+:({_PORT})").fullmatch)]
Count = Annotated[int, Range("0 or more", lambda value: value >= 0)]
NotNegative = Annotated[float, Range("0 or more", lambda value: 0 <= value < math.inf)]
Rate = Annotated[float, Range("a positive number", lambda value: 0 < value < math.inf)]
Decay = Annotated[float, Range("above 0 and at most 1", lambda value: 0 < value <= 1)]
Share = Annotated[float, Range("at least 0 and below 1", lambda value: 0 <= value < 1)]
Seed = Annotated[int, Range("between 0 and 4294967295", lambda value: 0 <= value < 2**32)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Options):
    """Train a network and print its test accuracy."""

    model: Model = option("vgg16", f"one of {MODELS}", metavar="NAME", group="network and data")
    dataset: DataSet = option("cifar10", f"the data, one of {DATASETS}", metavar="NAME")
    data_dir: str | None = optional(
        "a directory that has or gets CIFAR (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)"
    )
    workdir: str | None = optional(
        "the run directory (default: runs/DATASET-MODEL-TIME)", group="start and resume"
    )
    resume: bool = option(
        False, "continue from the last checkpoint in --workdir, if any, with the saved options"
    )
    init_from: str | None = optional("weights and Adam moments to start from, as for evaluate")
    ema: bool = option(False, "use the exponential moving average in the torch file of --init-from")
    epochs: Positive = option(1, "passes over the training images", group="training")
    limit_steps: Positive | None = optional("end after this many steps, to try a run out")
    batch_size: Positive = option(100, "images per step; the last partial batch is dropped")
    learning_rate: Rate | None = optional(
        "Adam's initial learning rate (default: 0.001, or that of the torch Adam in --init-from)"
    )
    decay_rate: Decay = option(1 / 3, "factor on the learning rate at each decay (1: no decay)")
    decay_epochs: Positive = option(20, "epochs between two decays (in the original's report: 1)")
    warmup_epochs: Count = option(0, "epochs in which the rate first rises, linearly by step")
    weight_decay: NotNegative = option(0.0, "AdamW's decoupled weight decay (0: plain Adam)")
    dropout_rate: Share = option(0.5, "dropout before VGG's linear layers")
    augment: Literal["auto", "crop-flip", "crop", "none"] = option(
        "auto",
        "random crop and flip; auto: crop-flip for CIFAR, crop for a folder, none for digits",
    )
    val_fraction: Share = option(0.0, "share of the training images held out for validation")
    precision: Literal["float32", "bfloat16"] = option(
        "float32", "compute dtype; bfloat16 is faster on a GPU and on a CPU with avx512_bf16"
    )
    seed: Seed = option(0, "seeds the weights, the order of the images, crops, flips and dropout")
    on_nonfinite: Literal["stop", "skip"] = option(
        "stop", "if a loss is not finite: stop, or skip and count each update that is not finite"
    )
    coordinator: Address | None = optional(
        "the address of process 0; auto takes all three from Slurm, Kubernetes, Open MPI or a TPU",
        metavar="HOST:PORT",
        group="several processes",
    )
    num_processes: Positive | None = optional("how many processes train together")
    process_id: int | None = optional("the index of this process, from 0")
    report: bool = option(True, "do not write a report", group="reports and checkpoints")
    log_every: Positive = option(100, "steps between two reported losses")
    checkpoint_every: Count = option(0, "steps between checkpoints beside those after each epoch")
    keep: Positive = option(3, "how many of the last checkpoints to keep")
    compile_cache: bool = option(True, COMPILE_CACHE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ema and self.init_from is None:
            raise UserError("--ema selects among the weights of --init-from: pass that, too")
        by_hand = self.coordinator not in (None, "auto")
        ids = range(self.num_processes or 0) if by_hand else [None]
        if by_hand == (self.num_processes is None) or self.process_id not in ids:
            needs = "--num-processes N and --process-id, from 0 to N - 1"
            raise UserError(f"--coordinator HOST:PORT needs {needs}")
        if (self.resume or self.coordinator) and self.workdir is None:
            raise UserError("--resume and --coordinator need --workdir, the directory of the run")

    @property
    def augmentation(self) -> str:
        """The augmentation, with ``auto`` resolved by the data set."""
        auto = AUTO_AUGMENTATION.get(self.dataset, "crop")
        return auto if self.augment == "auto" else self.augment

    def recipe(self) -> Self:
        """Return the options that repeat the run, in a directory of its own."""
        return dataclasses.replace(self, workdir=None, resume=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the options to save."""
        return {name: value for name, value in vars(self).items() if name not in OF_PROCESS}

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Read saved options, or raise ``UserError``."""
        try:
            return cls(**parse_saved(regular_file(Path(path)).read_text("utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a saved training configuration: {error}") from error

    def resumed(self, flags: Mapping[str, Any]) -> Self:
        """Return the options, if the run resumes, with the saved ones for all but these flags."""
        path = Path(str(self.workdir)) / CONFIG_FILE
        if not self.resume or not path.exists():
            return self
        saved = self.from_json(path)
        if is_own(saved.model) and "model" not in flags:
            raise UserError(f"the run is of your own network: pass --model {saved.model}, too")
        return dataclasses.replace(saved, **flags)

    def check_resumes(self, saved: Mapping[str, Any], path: Path) -> None:
        """Raise ``UserError`` if an option may not change and is not what the run started with."""
        for name, new in self.to_dict().items():
            old = saved.get(name, new)
            folders = str(new).startswith(FOLDER_PREFIX) and str(old).startswith(FOLDER_PREFIX)
            moved = name == "dataset" and folders  # its images are compared instead
            if new not in (old, None) and name not in MAY_CHANGE and not moved:
                problem = f"{flag(name)} {new} is not what {path} was started with ({old})"
                raise UserError(f"{problem}: leave it out, or start a run in another --workdir")
