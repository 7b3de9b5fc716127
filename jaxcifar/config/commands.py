"""The options of the commands that work with trained weights."""

import dataclasses
import re
from typing import Annotated, Any

from jaxcifar.config.options import Options, Positive, Range, argument, option, optional, required
from jaxcifar.config.train import COMPILE_CACHE, DATASETS, DataSet, Model

_SHAPE = re.compile(r"([1-9]\d{0,3}x){2}[1-9]\d{0,3}")
Shape = Annotated[str, Range("CxHxW, such as 3x224x224", _SHAPE.fullmatch)]
SOURCES = "a run directory, RUN:best, a checkpoint, a torch or safetensors file, or pretrained"
NETWORK = "the network, as for jaxcifar train (default: by keys and shapes)"
BATCH = "images per forward pass; does not change the result"
PLATFORMS = ("cpu", "cuda", "tpu")  # of exported programs
VERIFY_IMAGES = 48  # CIFAR-10 images that the port compares on


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsOptions(Options):
    """The weights that a command reads."""

    checkpoint: str = required(SOURCES)
    model: Model | None = optional(NETWORK, metavar="NAME")
    ema: bool = option(False, "use the exponential moving average in a torch file")
    prefix: str | None = optional("use the weights below this key of a torch file", metavar="KEY")

    @property
    def chosen(self) -> dict[str, Any]:
        """What ``weights.load`` chooses by among the weights of a source."""
        return {"model": self.model, "ema": self.ema, "prefix": self.prefix}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(WeightsOptions):
    """Print how good weights are on test images."""

    dataset: DataSet | None = optional(
        f"the test images, one of {DATASETS} (default: the run's own, else cifar10)", metavar="NAME"
    )
    data_dir: str | None = optional("where the data is, as for jaxcifar train")
    batch_size: Positive = option(500, BATCH)
    json: bool = option(False, "print one JSON document instead")
    compile_cache: bool = option(True, COMPILE_CACHE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig(WeightsOptions):
    """Print the most likely classes of images."""

    image: tuple[str, ...] = argument(
        "image files, folders of them, or - for an image on stdin; each is converted to 32x32 RGB"
    )
    top: Positive = option(3, "how many classes to print per image, most likely first")
    batch_size: Positive = option(100, BATCH)
    json: bool = option(False, "print one JSON document instead of lines")
    compile_cache: bool = option(True, COMPILE_CACHE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(WeightsOptions):
    """Write weights for torch, safetensors or plain JAX."""

    output: str = argument(
        "NAME.ckpt/.pt/.pth (torch), NAME.safetensors or NAME.stablehlo (a program for plain JAX)"
    )
    force: bool = option(False, "replace an existing OUTPUT")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig(Options):
    """Make a page with the scores and curves of runs."""

    workdirs: tuple[str, ...] = argument("run directories; several are compared in one page")
    output: str | None = optional("where to (default: WORKDIR/report; for several runs: report)")
    model: Model | None = optional("the network of runs of your own network", metavar="NAME")
    data_dir: str | None = optional("where the data is (default: where the run found it)")
    compile_cache: bool = option(True, COMPILE_CACHE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PortConfig(WeightsOptions):
    """Convert weights from or to torch, and verify them."""

    checkpoint: str = argument(SOURCES)
    output: str = argument("NAME.ckpt/.pt/.pth (torch), NAME.safetensors or a directory (Orbax)")
    input: Shape = option(
        "3x32x32", "the images of your own network: channels, height and width", metavar="CxHxW"
    )
    verify: bool = option(True, "do not compare every layer's output with torch's")
    against: str | None = optional(
        "compare with a torch class or function, FILE.py:NAME or module:NAME", metavar="NAME"
    )
    train_step: bool = option(False, "compare the running statistics after one training step, too")
    data_dir: str | None = optional(f"compare on {VERIFY_IMAGES} CIFAR-10 images from here, too")
    report: str | None = optional("write what was done and measured to this JSON file")
    dry_run: bool = option(False, "check and compare, but write nothing except the report")
    force: bool = option(False, "replace an existing OUTPUT and report")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        channels, height, width = map(int, self.input.split("x"))
        return height, width, channels
