"""Class probabilities of images: ``jaxcifar predict``, or ``predict(state, images)``."""

if __name__ == "__main__":  # python -m jaxcifar.predict
    from jaxcifar import cli

    cli.main("predict")

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from scipy.special import softmax

from jaxcifar.config.commands import PredictConfig
from jaxcifar.core import inference, sharding
from jaxcifar.core.state import TrainState
from jaxcifar.data import cifar
from jaxcifar.data import images as files
from jaxcifar.errors import MAX_BYTES, UserError, log, one_line
from jaxcifar.files import weights
from jaxcifar.reporting.scores import check_finite
from jaxcifar.runtime import process


def predict(
    state: TrainState, images: np.ndarray, *, batch_size: int, mesh: Mesh | None = None
) -> np.ndarray:
    """Return class probabilities, float32 ``(N, classes)``, of uint8 ``(N, 32, 32, 3)``."""
    return softmax(inference.logits(state, images, batch_size=batch_size, mesh=mesh), axis=1)


def main(config: PredictConfig) -> int:
    """Run the command; return 1 if a file could not be read."""
    process.start(use_compile_cache=config.compile_cache)
    loaded = weights.load(config.checkpoint, **config.chosen)
    names = loaded.class_names
    if names is None and loaded.num_classes == 10 and loaded.dataset in (None, "cifar10"):
        log.info("%s has no class names; using CIFAR-10's", config.checkpoint)
        names = cifar.CLASS_NAMES
    names = names or tuple(f"class {index}" for index in range(loaded.num_classes))
    mesh = sharding.make_mesh()
    state = sharding.put(loaded.state(), sharding.replicated(mesh))
    paths = list[Path]()
    for each in map(Path, config.image):
        found, skipped = files.below(each) if each.is_dir() else ([], [])
        files.log_skipped(each, skipped)
        paths += found or [each]
    results: list[dict[str, Any]] = []
    process.keep_freed()
    for start in range(0, len(paths), config.batch_size):
        read, images = list[str](), list[np.ndarray]()
        for path in paths[start : start + config.batch_size]:
            try:
                images.append(_read(path))
                read.append(str(path))
            except (UserError, OSError) as error:
                results.append({"image": str(path), "error": one_line(str(error))})
                log.warning("%s; skipped", results[-1]["error"])
        if not read:
            continue
        probabilities = predict(state, np.stack(images), batch_size=config.batch_size, mesh=mesh)
        check_finite(probabilities)
        for image, row in zip(read, probabilities.tolist(), strict=True):
            order = np.argsort(np.negative(row), kind="stable")[: config.top].tolist()
            top = [{"class": names[i], "index": i, "probability": row[i]} for i in order]
            results.append({"image": image, "top": top})
            if not config.json:
                shares = ", ".join(f"{names[i]} {100 * row[i]:.1f} %" for i in order)
                print(f"{one_line(image)}: {shares}", flush=True)
    if config.json:
        document = {"checkpoint": config.checkpoint, "model": loaded.model, "images": results}
        print(json.dumps(document, indent=2))
    return int(any("error" in result for result in results))


def _read(path: Path) -> np.ndarray:
    """Return an image, for ``-`` that on stdin, as uint8 ``(32, 32, 3)``."""
    if path.is_dir():
        raise UserError(f"{path} has no images")
    if path == Path("-") and sys.stdin is None:
        raise UserError("stdin is closed; pass a file, or an image on stdin")
    stdin = io.BytesIO(sys.stdin.buffer.read(MAX_BYTES)) if path == Path("-") else None
    with files.quiet():
        return files.read(stdin or path)
