"""What a training run starts from: its data, model, schedule and first state."""

import functools
import logging
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh

from jaxcifar import data
from jaxcifar.config import TrainConfig
from jaxcifar.core import sharding, state, steps
from jaxcifar.core.models import create_model, head
from jaxcifar.errors import UserError, difference
from jaxcifar.files.digest import digest
from jaxcifar.files.run import RunDirectory
from jaxcifar.files.weights import Weights
from jaxcifar.runtime import process

log = logging.getLogger(__name__)


class Run(NamedTuple):
    """What stays the same throughout a run; ``train`` is on the devices, the rest on the host."""

    config: TrainConfig
    directory: RunDirectory
    mesh: Mesh
    train: steps.Examples
    val: steps.Examples | None
    test: steps.Examples
    metadata: Mapping[str, Any]  # saved with each checkpoint
    schedule: optax.Schedule
    order_key: jax.Array
    step_key: jax.Array

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train.labels) // self.config.batch_size

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch

    @property
    def resume_command(self) -> str:
        return f"jaxcifar train --workdir {shlex.quote(str(self.directory.path))} --resume"


def prepare(
    config: TrainConfig, directory: RunDirectory, initial: Weights | None
) -> tuple[Run, state.TrainState, steps.Metrics]:
    """Load the data and build the first state, on all devices."""
    mesh = sharding.make_mesh()
    _check_divisible(config.batch_size, mesh.size)
    dataset = data.load(config.dataset, config.data_dir)
    train, val = data.hold_out(dataset.train, config.val_fraction)
    steps_per_epoch = len(train.labels) // config.batch_size
    if steps_per_epoch == 0:
        raise UserError(
            f"--batch-size {config.batch_size} is more than the {len(train.labels)} training images"
        )
    model = create_model(
        config.model,
        num_classes=len(dataset.class_names),
        dropout_rate=config.dropout_rate,
        dtype=config.precision,
    )
    if config.precision == "bfloat16" and process.computes_on_cpu():
        process.warn_of_slow_bfloat16()
    assert config.learning_rate is not None
    schedule = state.make_schedule(
        config.learning_rate,
        decay_rate=config.decay_rate,
        decay_steps=config.decay_epochs * steps_per_epoch,
    )
    optimizer = state.make_optimizer(schedule)
    replicated = sharding.replicated(mesh)

    # All random numbers follow from these, the epoch and the step: resuming needs no more.
    @functools.partial(jax.jit, out_shardings=replicated)
    def split_seed() -> jax.Array:
        return jax.random.split(jax.random.key(config.seed), 3)

    init_key, order_key, step_key = split_seed()
    if initial:
        initial = _fit_classes(config, initial, model, dataset.class_names, init_key)
        first = state.state_from(initial.variables, model, optimizer, adam=initial.adam)
    else:
        first = state.create_state(init_key, model, optimizer)
    metadata = {
        **config.to_dict(),
        "class_names": list(dataset.class_names),
        "train_images": len(dataset.train.labels),
        "train_sha256": digest(dataset.train),
    }
    first, totals, train = sharding.put((first, steps.Metrics.zeros(), train), replicated)
    run = Run(
        *(config, directory, mesh, train, val, dataset.test, metadata, schedule),
        *(order_key, step_key),
    )
    return run, first, totals


def learning_rate(config: TrainConfig, saved: Mapping[str, Any], initial: Weights | None) -> float:
    """Return the rate asked for, else the resumed run's, the torch optimizer's, or 0.001."""
    stopped_at = initial.learning_rate if initial else None
    if config.learning_rate is None and stopped_at == 0:
        raise UserError(f"{config.init_from} stopped at a learning rate of 0: pass --learning-rate")
    return config.learning_rate or saved.get("learning_rate") or stopped_at or 1e-3


def _fit_classes(
    config: TrainConfig,
    initial: Weights,
    model: nn.Module,
    class_names: tuple[str, ...],
    key: jax.Array,
) -> Weights:
    """Return the weights with a head for the data's classes; log if that or a name is new."""
    source, num_classes = str(config.init_from), len(class_names)
    if initial.num_classes == num_classes:
        initial.warn_of_names(source, config.dataset, class_names)
        return initial
    log.info(
        "%s has %d classes, %s has %d: reinitialising the head (%s)",
        *(source, initial.num_classes, config.dataset, num_classes, ".".join(head(model))),
    )
    variables, adam = state.replace_head(key, initial.variables, initial.adam, model)
    return initial._replace(
        variables=variables, adam=adam, num_classes=num_classes, class_names=class_names
    )


def _check_divisible(batch_size: int, devices: int) -> None:
    """Check that a batch can be split equally; the error names the nearest sizes that can."""
    remainder = batch_size % devices
    if remainder:
        below, above = batch_size - remainder, batch_size - remainder + devices
        nearest = f"{below} or {above}" if below else str(above)
        raise UserError(
            f"--batch-size {batch_size} cannot be split over {devices} devices: use {nearest}"
        )


def check_same_data(run: Run, saved: Mapping[str, Any]) -> None:
    """Check that a resumed run has the data it began with, as far as its checkpoints tell."""
    now = run.metadata
    then = {**now, **saved}
    change = difference(now["class_names"], then["class_names"], "the data", "the checkpoint")
    if not change and now["train_images"] != then["train_images"]:
        change = f"it has {now['train_images']} training images, and had {then['train_images']}"
    if not change and now["train_sha256"] != then["train_sha256"]:
        change = "it has as many training images, but other ones"
    if change:
        raise UserError(
            f"{run.config.dataset} is not what the run was started with ({change}): restore it, or"
            " start another run with --init-from this one"
        )
