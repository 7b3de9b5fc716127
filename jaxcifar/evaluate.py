"""Metrics over a whole split: ``python -m jaxcifar.evaluate``, or ``evaluate(state, examples)``."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxcifar import cli
from jaxcifar.config import DATASETS, DatasetName, WeightsConfig, option, require_dataset
from jaxcifar.errors import UserError
from jaxcifar.runtime import process as runtime

if TYPE_CHECKING:
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from jaxcifar.core.state import TrainState
    from jaxcifar.core.steps import Metrics
    from jaxcifar.data import Examples
    from jaxcifar.reporting.scores import Scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(WeightsConfig):
    """What the command evaluates, and on what."""

    dataset: DatasetName | None = option(
        None,
        f"whose test images, one of {DATASETS} (default: what the run was trained on, else"
        " cifar10)",
        metavar="NAME",
    )
    data_dir: str | None = option(None, "where the data is, as for jaxcifar.train")
    batch_size: int = option(500, "images at a time; it does not change the result")
    json: bool = option(False, "print one JSON document instead")
    compile_cache: bool = option(
        True, "do not keep compiled programs in the user's cache folder for the next run"
    )


class Evaluation(NamedTuple):
    """What weights gave on test images.

    Attributes:
      model: the network's name.
      dataset: the data's.
      examples: the test images and labels.
      class_names: in the order of the labels.
      logits: float32 ``(N, classes)``.
      scores: of the logits.
    """

    model: str
    dataset: str
    examples: "Examples"
    class_names: tuple[str, ...]
    logits: "np.ndarray"
    scores: "Scores"


def evaluate(
    state: "TrainState", examples: "Examples", *, batch_size: int, mesh: "Mesh | None" = None
) -> "Metrics":
    """Sums the metrics over every image; the last batch is filled up and masked.

    Args:
      state: what is evaluated; it is not donated.
      examples: the split, on the host or, better, on the device.
      batch_size: images at a time; it does not change the result.
      mesh: devices that hold both and share the work; None means the default one.
    """
    *_, (totals, _) = _batches(state, examples, batch_size, mesh)
    return totals


def predict(
    state: "TrainState",
    examples: "Examples",
    *,
    batch_size: int,
    mesh: "Mesh | None" = None,
    progress: bool = False,
) -> "np.ndarray":
    """The logits of every image, float32 ``(N, classes)``, on the host; arguments as above.

    ``progress`` shows a bar in a terminal.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils
    from tqdm import tqdm

    total = len(examples.labels)
    parts = []
    shown = progress and sys.stderr.isatty()
    with tqdm(total=total, unit=" images", desc="test", disable=not shown, leave=False) as bar:
        for _, logits in _batches(state, examples, batch_size, mesh):
            if jax.process_count() > 1:
                logits = multihost_utils.process_allgather(logits, tiled=True)
            parts.append(logits)
            if shown:
                jax.block_until_ready(logits)
            bar.update(min(len(logits), total - bar.n))
    return np.concatenate(jax.device_get(parts))[:total]


def _batches(
    state: "TrainState", examples: "Examples", batch_size: int, mesh: "Mesh | None"
) -> "Iterator[tuple[Metrics, jax.Array]]":
    """After each batch the metrics so far, and the batch's logits."""
    import numpy as np

    from jaxcifar.core import sharding
    from jaxcifar.core.steps import Metrics, eval_step_at

    if mesh is not None:
        batch_size += -batch_size % mesh.size
    # Where the results will be: zeros elsewhere would make it another program, compiled anew.
    totals = sharding.put(Metrics.zeros(), state.step.sharding)
    for start in range(0, len(examples.labels), batch_size):
        indices = np.arange(start, start + batch_size, dtype=np.int32)
        if mesh is not None:
            indices = sharding.put(indices, sharding.split(mesh))
        totals, logits = eval_step_at(state, totals, examples, indices)
        yield totals, logits
        if start == 0:
            runtime.keep_freed_memory()


def score_checkpoint(
    checkpoint: str,
    *,
    ema: bool = False,
    dataset: str | None = None,
    data_dir: str | None = None,
    batch_size: int = 500,
) -> Evaluation:
    """Runs trained weights over test images; shows a bar in a terminal.

    Args:
      checkpoint: whatever ``weights.load`` takes.
      ema: of a torch file, take the moving average.
      dataset: whose test images; None means what the run was trained on, else CIFAR-10.
      data_dir: where the data is.
      batch_size: images at a time; it does not change the result.

    Raises:
      UserError: the weights or the data cannot be read, or do not fit each other.
    """
    from jaxcifar import data
    from jaxcifar.core import sharding
    from jaxcifar.files import weights
    from jaxcifar.reporting import scores

    loaded = weights.load(checkpoint, ema=ema)
    loaded.tell(checkpoint)
    name = dataset or loaded.dataset or "cifar10"
    splits = data.load(name, data_dir)
    loaded.require_classes(checkpoint, name, len(splits.class_names))
    loaded.warn_of_names(checkpoint, name, splits.class_names)
    mesh = sharding.make_mesh()
    state, test = sharding.put((loaded.state(), splits.test), sharding.replicated(mesh))
    logits = predict(state, test, batch_size=batch_size, mesh=mesh, progress=True)
    found = scores.score(logits, splits.test.labels, splits.class_names)
    return Evaluation(loaded.model, name, splits.test, splits.class_names, logits, found)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    flags = cli.parse(
        EvaluateConfig,
        argv,
        prog="python -m jaxcifar.evaluate",
        description="Prints how good trained weights are on the test images.",
    )
    config = EvaluateConfig(**flags)
    if config.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {config.batch_size}")
    if config.dataset is not None:
        require_dataset(config.dataset)

    runtime.dispatch_in_turn()
    from jaxcifar.reporting.scores import table
    from jaxcifar.runtime import compile_cache

    if config.compile_cache:
        compile_cache.enable()
    found = score_checkpoint(
        config.checkpoint,
        ema=config.ema,
        dataset=config.dataset,
        data_dir=config.data_dir,
        batch_size=config.batch_size,
    )
    scores = found.scores
    if config.json:
        named = {"checkpoint": config.checkpoint, "model": found.model, "dataset": found.dataset}
        print(json.dumps({**named, **scores.to_dict()}, indent=2))
        return
    print(f"{found.model} on {scores.images} test images of {found.dataset}")
    print(f"Accuracy of the model on the test images: {100 * scores.accuracy:.2f} %")
    low, high = scores.accuracy_interval
    print(f"  95 % interval {100 * low:.2f} to {100 * high:.2f} %")
    print(f"Loss {scores.loss:.4f}, calibration error {scores.calibration_error:.4f}", end="")
    print("" if scores.top5 is None else f", top-5 {100 * scores.top5:.2f} %")
    print(f"\n{table(scores)}")


if __name__ == "__main__":
    cli.run(main, prog="jaxcifar.evaluate")
