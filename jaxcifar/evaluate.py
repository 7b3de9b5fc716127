"""Metrics over a whole split: ``python -m jaxcifar.evaluate``, or ``evaluate(state, examples)``."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxcifar import cli, runtime
from jaxcifar.config import DATASETS, REQUIRED, DatasetName, option, require_dataset
from jaxcifar.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxcifar.data import Examples
    from jaxcifar.state import TrainState
    from jaxcifar.steps import Metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What the command evaluates, and on what."""

    checkpoint: str = option(
        REQUIRED,
        "a run's folder, a ported checkpoint, a torch .ckpt/.pt/.pth or a .safetensors file",
    )
    ema: bool = option(False, "of a torch file, take the exponential moving average")
    dataset: DatasetName | None = option(
        None,
        f"whose test images, one of {DATASETS} (default: what the run was trained on, else"
        " cifar10)",
        metavar="NAME",
    )
    data_dir: str | None = option(None, "where the data is, as for jaxcifar.train")
    batch_size: int = option(500, "images at a time; it does not change the result")


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
    import numpy as np

    from jaxcifar import sharding
    from jaxcifar.steps import Metrics, eval_step_at

    if mesh is not None:
        batch_size += -batch_size % mesh.size
    totals = Metrics.zeros()
    for start in range(0, len(examples.labels), batch_size):
        indices = np.arange(start, start + batch_size, dtype=np.int32)
        if mesh is not None:
            indices = sharding.put(indices, sharding.split(mesh))
        totals = eval_step_at(state, totals, examples, indices)
        if start == 0:
            runtime.keep_freed_memory()
    return totals


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    flags = cli.parse(
        EvaluateConfig,
        argv,
        prog="python -m jaxcifar.evaluate",
        description="Prints the loss and accuracy of trained weights on the test images.",
    )
    config = EvaluateConfig(**flags)
    if config.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {config.batch_size}")
    if config.dataset is not None:
        require_dataset(config.dataset)

    runtime.dispatch_in_turn()
    import optax

    from jaxcifar import compile_cache, data, sharding, weights
    from jaxcifar.state import state_from

    compile_cache.enable()
    loaded = weights.load(config.checkpoint, ema=config.ema)
    loaded.tell(config.checkpoint)
    name = config.dataset or loaded.dataset or "cifar10"
    dataset = data.load(name, config.data_dir)
    loaded.require_classes(config.checkpoint, name, len(dataset.class_names))
    loaded.warn_of_names(config.checkpoint, name, dataset.class_names)
    state = state_from(loaded.variables, loaded.build(), optax.identity())
    mesh = sharding.make_mesh()
    state, test = sharding.put((state, dataset.test), sharding.replicated(mesh))
    loss, accuracy = evaluate(state, test, batch_size=config.batch_size, mesh=mesh).means()
    print(f"{loaded.model}, loss {loss:.4f} on {len(test.labels)} test images of {name}")
    print(f"Accuracy of the model on the test images: {100 * accuracy:.2f} %")


if __name__ == "__main__":
    cli.run(main, prog="jaxcifar.evaluate")
