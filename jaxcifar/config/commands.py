"""The options of the commands that work with trained weights."""

import dataclasses
import re
from typing import Literal

from jaxcifar.config.options import POSITIVE, REQUIRED, Options, Range, option
from jaxcifar.config.train import COMPILE_CACHE, DATASET, DATASETS, MODEL

INPUT = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,3})x([1-9]\d{0,3})")
NETWORK = "the network, as for jaxcifar train (default: by keys and shapes)"
PLATFORMS = ("cpu", "cuda", "tpu")  # of exported programs
VERIFY_IMAGES = 48  # CIFAR-10 images that the port compares on


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsOptions(Options):
    """The weights that a command reads."""

    checkpoint: str = option(
        REQUIRED,
        "a run directory, RUN:best (its best checkpoint by validation), a ported checkpoint, a"
        " torch .ckpt/.pt/.pth, a .safetensors file, or pretrained",
    )
    model: str | None = option(None, NETWORK, MODEL, metavar="NAME")
    ema: bool = option(False, "use the exponential moving average in a torch file")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(WeightsOptions):
    """The options of ``jaxcifar evaluate``."""

    dataset: str | None = option(
        None,
        f"the test images, one of {DATASETS} (default: the run's own, else cifar10)",
        DATASET,
        metavar="NAME",
    )
    data_dir: str | None = option(None, "where the data is, as for jaxcifar train")
    batch_size: int = option(500, "images per forward pass; does not change the result", POSITIVE)
    json: bool = option(False, "print one JSON document instead")
    compile_cache: bool = option(True, COMPILE_CACHE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig(WeightsOptions):
    """The options of ``jaxcifar predict``."""

    image: tuple[str, ...] = option(
        REQUIRED,
        "a PNG, JPEG, WebP, BMP, GIF, TIFF, PPM or AVIF file, a folder (all images below it), or"
        " - for an image on stdin; each is converted to 32x32 RGB",
        positional=True,
    )
    top: int = option(3, "how many classes to print per image, most likely first", POSITIVE)
    batch_size: int = option(100, "images per forward pass; does not change the result", POSITIVE)
    json: bool = option(False, "print one JSON document instead of lines")
    compile_cache: bool = option(True, COMPILE_CACHE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(WeightsOptions):
    """The options of ``jaxcifar export``."""

    output: str = option(
        REQUIRED,
        "the file to write: NAME.ckpt/.pt/.pth (a torch state dict), NAME.safetensors, or"
        " NAME.stablehlo (a program with the weights inside, which runs with plain JAX, without"
        f" jaxcifar, on {', '.join(PLATFORMS)}; it maps uint8 images (N, 32, 32, 3) to float32"
        " logits (N, classes))",
        positional=True,
    )
    force: bool = option(False, "replace an existing OUTPUT")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig(Options):
    """The options of ``jaxcifar report``."""

    workdirs: tuple[str, ...] = option(
        REQUIRED, "run directories; several are compared in one page", positional=True
    )
    output: str | None = option(
        None, "where to (default: WORKDIR/report; for several runs: report)"
    )
    data_dir: str | None = option(None, "where the data is, if a run must be evaluated again")
    compile_cache: bool = option(True, COMPILE_CACHE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PortConfig(Options):
    """The options of ``jaxcifar port``."""

    source: str = option(
        REQUIRED,
        "a torch .ckpt/.pt/.pth, a .safetensors file, an Orbax checkpoint, a run directory, or"
        " pretrained",
        positional=True,
    )
    output: str = option(
        REQUIRED,
        "what to write: a directory (Orbax), NAME.safetensors, or NAME.ckpt/.pt/.pth (torch)",
        positional=True,
    )
    to: Literal["orbax", "safetensors", "torch"] | None = option(
        None, "the format of OUTPUT (default: by its name)"
    )
    model: str | None = option(None, NETWORK, MODEL, metavar="NAME")
    input: str = option(
        "3x32x32",
        "the images of your own network: channels, height and width",
        Range("CxHxW, such as 3x224x224", lambda value: bool(INPUT.fullmatch(value))),
        metavar="CxHxW",
    )
    ema: bool = option(False, "use the exponential moving average of the weights")
    prefix: str | None = option(
        None, "use the weights below this key, if the file has several copies", metavar="KEY"
    )
    verify: bool = option(True, "do not compare every layer's output with torch's")
    against: str | None = option(
        None,
        "compare with the module that your own torch class or function gives, FILE.py:NAME or"
        " package.module:NAME, such as torchvision.models:resnet18",
        metavar="NAME",
    )
    train_step: bool = option(False, "compare the running statistics after one training step, too")
    data_dir: str | None = option(
        None,
        f"compare on {VERIFY_IMAGES} CIFAR-10 test images, too; they are or will be loaded here",
    )
    report: str | None = option(None, "write what was done and measured to this JSON file")
    dry_run: bool = option(False, "check and compare, but write nothing except the report")
    force: bool = option(False, "replace an existing OUTPUT and report")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        channels, height, width = map(int, self.input.split("x"))
        return height, width, channels
