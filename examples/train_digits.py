"""Trains on scikit-learn's digits, then the last layer alone in a loop of its own.

    python examples/train_digits.py --epochs 8 --tune-epochs 2

The first part is the call behind ``python -m jaxcifar.train``. The second starts from the run's
weights, with an optimizer and a schedule that jaxcifar does not have: a program to begin with.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxcifar import cli
from jaxcifar.config import ModelName, TrainConfig, option
from jaxcifar.errors import UserError

if TYPE_CHECKING:
    from jaxcifar.core.state import TrainState

HEADS = ("fc", "classifier")  # of the ResNet and of VGG


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleConfig:
    """The flags; ``cli.parse`` reads them."""

    model: ModelName = option("resnet50_layer4", "the network")
    epochs: int = option(8, "passes over the digits in the first part")
    tune_epochs: int = option(2, "passes in the second")
    batch_size: int = option(100, "images a step")
    workdir: str | None = option(None, "where the run goes (default: runs/digits-MODEL-TIME)")


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, then tunes."""
    flags = cli.parse(
        ExampleConfig,
        argv,
        prog="python examples/train_digits.py",
        description="Trains on scikit-learn's digits, then the last layer alone.",
    )
    example = ExampleConfig(**flags)
    if example.tune_epochs < 1:
        raise UserError(f"--tune-epochs must be at least 1, got {example.tune_epochs}")

    from jaxcifar import train_and_evaluate

    history = train_and_evaluate(
        TrainConfig(
            model=example.model,
            dataset="digits",
            epochs=example.epochs,
            batch_size=example.batch_size,
            workdir=example.workdir,
        )
    )
    tune(history.workdir, epochs=example.tune_epochs, batch_size=example.batch_size)


def tune(folder: Path, *, epochs: int, batch_size: int) -> "TrainState":
    """Trains the last layers of a run's network and returns the last state.

    BatchNorm's running statistics go on in all layers; they are no parameters.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from jaxcifar import data, train_step
    from jaxcifar.core.state import epoch_order, state_from
    from jaxcifar.evaluate import evaluate
    from jaxcifar.files import weights

    loaded = weights.load(folder)  # its last checkpoint
    digits = data.load("digits")
    train, test = jax.tree.map(jnp.asarray, (digits.train, digits.test))
    steps = len(train.labels) // batch_size

    rate = optax.warmup_cosine_decay_schedule(
        0.0, 1e-2, warmup_steps=steps // 2, decay_steps=epochs * steps
    )
    labels = {name: "tuned" if name in HEADS else "frozen" for name in loaded.variables["params"]}
    optimizer = optax.multi_transform(
        {"tuned": optax.sgd(rate, momentum=0.9), "frozen": optax.set_to_zero()}, labels
    )
    state = state_from(loaded.variables, loaded.build(), optimizer)
    step = jax.jit(train_step, donate_argnums=0, static_argnames="augment")
    order_key, step_key = jax.random.split(jax.random.key(1))
    for epoch in range(epochs):
        order = epoch_order(order_key, epoch, examples=len(train.labels), batch_size=batch_size)
        for indices in order:
            batch = data.Examples(train.images[indices], train.labels[indices])
            state, _ = step(state, batch, step_key, augment=False)
        loss, accuracy = evaluate(state, test, batch_size=batch_size).means()
        print(f"Tuned for {epoch + 1}/{epochs}: loss {loss:.4f}, accuracy {100 * accuracy:.2f} %")
    return state


if __name__ == "__main__":
    cli.run(main, prog="train_digits")
