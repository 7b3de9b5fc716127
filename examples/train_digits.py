"""Train on scikit-learn's digits, then fine-tune the head in a loop of your own.

    python examples/train_digits.py --epochs 8 --tune-epochs 2

The first part is the call behind ``jaxcifar train``. The second part starts from the weights of
that run and uses an optimizer and a schedule that jaxcifar does not have. Copy it to start a
program of your own.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from jaxcifar import (
    Examples,
    TrainConfig,
    TrainState,
    UserError,
    data,
    logits,
    train_and_evaluate,
    train_step,
)
from jaxcifar.core.state import epoch_order, state_from
from jaxcifar.files import weights
from jaxcifar.reporting.scores import score

HEADS = ("fc", "classifier")  # of the ResNet and of VGG


def main(argv: Sequence[str] | None = None) -> None:
    """Train, then fine-tune."""
    parser = argparse.ArgumentParser(description="Train on digits, then fine-tune the head.")
    parser.add_argument("--model", default="resnet50_layer4", help="the network")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of training")
    parser.add_argument("--tune-epochs", type=int, default=2, help="epochs of fine-tuning")
    parser.add_argument("--batch-size", type=int, default=100, help="images per step")
    parser.add_argument("--workdir", help="the run directory (default: runs/digits-MODEL-TIME)")
    args = parser.parse_args(argv)
    if args.tune_epochs < 1:
        parser.error(f"--tune-epochs must be at least 1, got {args.tune_epochs}")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("jaxcifar").setLevel(logging.INFO)
    try:
        config = TrainConfig(
            model=args.model,
            dataset="digits",
            epochs=args.epochs,
            batch_size=args.batch_size,
            workdir=args.workdir,
        )
        history = train_and_evaluate(config)
        tune(history.workdir, epochs=args.tune_epochs, batch_size=args.batch_size)
    except UserError as error:
        parser.error(str(error))


def tune(run: Path, *, epochs: int, batch_size: int) -> TrainState:
    """Train only the head of a run's network and return the final state.

    BatchNorm's running statistics are not parameters: all layers update them.
    """
    loaded = weights.load(run)  # its last checkpoint
    digits = data.load("digits")
    train = jax.tree.map(jnp.asarray, digits.train)  # on the device
    steps = len(train.labels) // batch_size

    rate = optax.warmup_cosine_decay_schedule(
        0.0, 1e-2, warmup_steps=steps // 2, decay_steps=epochs * steps
    )
    groups = {name: "tuned" if name in HEADS else "frozen" for name in loaded.variables["params"]}
    optimizer = optax.multi_transform(
        {"tuned": optax.sgd(rate, momentum=0.9), "frozen": optax.set_to_zero()}, groups
    )
    state = state_from(loaded.variables, loaded.build(), optimizer)
    step = jax.jit(train_step, donate_argnums=0)
    order_key, step_key = jax.random.split(jax.random.key(1))
    for epoch in range(epochs):
        order = epoch_order(order_key, epoch, examples=len(train.labels), batch_size=batch_size)
        for indices in order:
            batch = Examples(train.images[indices], train.labels[indices])
            state, _ = step(state, batch, step_key)
        test_logits = logits(state, digits.test.images, batch_size=batch_size)
        scores = score(test_logits, digits.test.labels, digits.class_names)
        print(
            f"Tuned for {epoch + 1}/{epochs}: loss {scores.loss:.4f},"
            f" accuracy {100 * scores.accuracy:.2f} %"
        )
    return state


if __name__ == "__main__":
    main()
