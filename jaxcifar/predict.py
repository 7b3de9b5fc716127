"""Says what is in images: ``python -m jaxcifar.predict``, or ``predict(state, images)``."""

import dataclasses
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxcifar import cli
from jaxcifar.config import REQUIRED, WeightsConfig, option
from jaxcifar.errors import UserError, one_line
from jaxcifar.runtime import process as runtime

if TYPE_CHECKING:
    import numpy as np
    from jax.sharding import Mesh

    from jaxcifar.core.state import TrainState
    from jaxcifar.files.weights import Weights

PROG = "jaxcifar.predict"
STDIN = Path("-")
STDIN_BYTES = 2**28  # nothing larger is read into memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig(WeightsConfig):
    """What is predicted, and of what."""

    image: tuple[str, ...] = option(
        REQUIRED,
        "a PNG, JPEG, WebP, BMP, GIF, TIFF or PPM file, a folder (all images below it, sorted),"
        " or - for one on stdin; other sizes and modes are brought to 32x32 RGB",
        positional=True,
    )
    top: int = option(3, "how many classes are printed for each image, the likeliest first")
    batch_size: int = option(100, "images at a time; it does not change the result")
    json: bool = option(False, "print one JSON document instead of lines")
    compile_cache: bool = option(
        True, "do not keep compiled programs in the user's cache folder for the next time"
    )

    def __post_init__(self) -> None:
        if self.top < 1:
            raise UserError(f"--top must be at least 1, got {self.top}")
        if self.batch_size < 1:
            raise UserError(f"--batch-size must be at least 1, got {self.batch_size}")


def predict(
    state: "TrainState", images: "np.ndarray", *, batch_size: int, mesh: "Mesh | None" = None
) -> "np.ndarray":
    """Class probabilities, by the forward pass of evaluation.

    Args:
      state: the trained state.
      images: uint8 ``(N, 32, 32, 3)``, on the host.
      batch_size: images at a time; the last batch is filled up.
      mesh: devices that hold the state and share the work; None means the default one.

    Returns:
      float32 ``(N, num_classes)``.
    """
    import jax
    import numpy as np

    from jaxcifar.core import sharding, steps

    if mesh is not None:
        batch_size += -batch_size % mesh.size
    step = jax.jit(steps.predict_step)
    parts = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        batch = np.zeros((batch_size, *images.shape[1:]), np.uint8)
        batch[: len(part)] = part
        if mesh is not None:
            batch = sharding.put(batch, sharding.split(mesh))
        parts.append(np.asarray(jax.nn.softmax(step(state, batch)))[: len(part)])
        runtime.keep_freed_memory()
    return np.concatenate(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 where an image could not be read."""
    flags = cli.parse(
        PredictConfig,
        argv,
        prog="python -m jaxcifar.predict",
        description="Prints the likeliest classes of images, with their probabilities.",
    )
    config = PredictConfig(**flags)

    runtime.dispatch_in_turn()
    from jaxcifar.files import weights
    from jaxcifar.runtime import compile_cache

    if config.compile_cache:
        compile_cache.enable()
    loaded = weights.load(config.checkpoint, ema=config.ema)
    loaded.tell(config.checkpoint)
    results = []
    for result in _predict_files(config, loaded):
        results.append(result)
        if "error" in result:
            print(f"{PROG}: {result['error']}", file=sys.stderr)
        elif not config.json:
            top = (f"{each['class']} {100 * each['probability']:.1f} %" for each in result["top"])
            print(f"{one_line(result['image'])}: {', '.join(top)}", flush=True)
    if config.json:
        document = {"checkpoint": config.checkpoint, "model": loaded.model, "images": results}
        print(json.dumps(document, indent=2))
    return int(any("error" in result for result in results))


def _predict_files(config: PredictConfig, loaded: "Weights") -> Iterator[dict[str, Any]]:
    """A dict for each image, with its top classes, or the error that it met."""
    import numpy as np

    from jaxcifar.core import sharding

    class_names = _class_names(config.checkpoint, loaded)
    mesh = sharding.make_mesh()
    state = sharding.put(loaded.state(), sharding.replicated(mesh))
    paths = _expand(config.image)
    told = False
    for start in range(0, len(paths), config.batch_size):
        found, images = [], []
        for path in paths[start : start + config.batch_size]:
            try:
                image, resized = _read(path)
            except (UserError, OSError) as error:
                yield {"image": str(path), "error": one_line(str(error))}
                continue
            if resized and not told:
                told = True
                runtime.note("images of other sizes or modes are brought to 32x32 RGB")
            found.append(path)
            images.append(image)
        if not found:
            continue
        probabilities = predict(state, np.stack(images), batch_size=config.batch_size, mesh=mesh)
        if not np.isfinite(probabilities).all():
            raise UserError(
                f"{config.checkpoint} gives probabilities that are not finite: its training"
                " diverged; take an earlier checkpoint"
            )
        for path, row in zip(found, probabilities, strict=True):
            order = np.argsort(-row, kind="stable")[: config.top].tolist()
            top = [
                {"class": class_names[index], "index": index, "probability": float(row[index])}
                for index in order
            ]
            yield {"image": str(path), "top": top}


def _class_names(source: str, loaded: "Weights") -> tuple[str, ...]:
    from jaxcifar.data.cifar import CLASS_NAMES

    if loaded.class_names is not None:
        return loaded.class_names
    if loaded.num_classes == len(CLASS_NAMES) and loaded.dataset in (None, "cifar10"):
        runtime.note(f"{source} does not name its classes: taking CIFAR-10's names")
        return CLASS_NAMES
    return tuple(f"class {index}" for index in range(loaded.num_classes))


def _expand(names: Sequence[str]) -> list[Path]:
    """The images of folders in their place; a folder without any stands for itself."""
    from jaxcifar.data import images

    given = [Path(name) for name in names]
    return [path for each in given for path in (each.is_dir() and images.below(each)) or [each]]


def _read(path: Path) -> "tuple[np.ndarray, bool]":
    """The image as uint8 ``(32, 32, 3)``, and whether it had another size or mode."""
    from jaxcifar.data import images

    if path == STDIN:
        if sys.stdin is None:
            raise UserError("stdin is closed: give a file, or an image on stdin")
        file: Path | io.BytesIO = io.BytesIO(sys.stdin.buffer.read(STDIN_BYTES))
    elif path.is_dir():
        raise UserError(f"{path} holds no images")
    else:
        file = path
    with images.quiet():
        image = images.open_image(file)
        try:
            pixels = images.to_rgb32(image)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    return pixels, (image.size, image.mode) != (images.SIZE, "RGB")


if __name__ == "__main__":
    cli.run(main, prog=PROG)
