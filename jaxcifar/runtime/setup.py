"""What a training run starts from: its data, model, schedule and first state."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jaxcifar import data
from jaxcifar.config.options import Options, command_line, this_program
from jaxcifar.config.train import OF_PROCESS, TrainConfig, is_own
from jaxcifar.core import sharding, state, steps
from jaxcifar.core.models import head
from jaxcifar.core.steps import Examples, Metrics
from jaxcifar.errors import UserError, difference
from jaxcifar.files import networks
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
    train: Examples
    val: Examples | None
    test: Examples
    metadata: Mapping[str, Any]  # saved with each checkpoint
    schedule: optax.Schedule
    order_key: jax.Array
    step_key: jax.Array

    @property
    def resume_command(self) -> str:
        """The command that continues the run."""
        options = {name: getattr(self.config, name) for name in OF_PROCESS}
        workdir = str(self.directory.path)
        return self.command("train", TrainConfig, workdir=workdir, resume=True, **options)

    def command(self, name: str, kind: type[Options], **options: Any) -> str:
        """Return a command about this run, to paste into a shell."""
        own = {"model": self.config.model} if is_own(self.config.model) else {}
        return command_line(kind(**own, **options), *this_program(), name)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train.labels) // self.config.batch_size

    @property
    def total_steps(self) -> int:
        steps = self.config.epochs * self.steps_per_epoch
        return min(steps, self.config.limit_steps or steps)


def prepare(
    config: TrainConfig, directory: RunDirectory, initial: Weights | None
) -> tuple[Run, state.TrainState, Metrics]:
    """Load the data and build the first state, on all devices."""
    mesh, batch_size = sharding.make_mesh(), config.batch_size
    if batch_size % mesh.size:
        problem = f"--batch-size {batch_size} cannot be split over {mesh.size} devices"
        raise UserError(f"{problem}: use a multiple of {mesh.size}")
    if config.precision == "bfloat16":
        process.warn_of_slow_bfloat16()
    dataset = data.load(config.dataset, config.data_dir)
    train, val = data.hold_out(dataset.train, config.val_fraction)
    if batch_size > (count := len(train.labels)):
        raise UserError(f"--batch-size {batch_size} is more than the {count} training images")
    model = networks.create(
        config.model,
        num_classes=len(dataset.class_names),
        dropout_rate=config.dropout_rate,
        dtype=config.precision,
    )
    assert config.learning_rate is not None
    steps_per_epoch = count // batch_size
    schedule = state.make_schedule(
        config.learning_rate,
        decay_rate=config.decay_rate,
        decay_steps=config.decay_epochs * steps_per_epoch,
        warmup_steps=config.warmup_epochs * steps_per_epoch,
    )
    optimizer = state.make_optimizer(schedule, weight_decay=config.weight_decay)
    replicated = sharding.replicated(mesh)
    # All random numbers follow from these, the epoch and the step: resuming needs no more.
    split = jax.jit(lambda s: jax.random.split(jax.random.key(s), 3), out_shardings=replicated)
    init_key, order_key, step_key = split(np.uint32(config.seed))
    if initial:
        initial = _fit_classes(config, initial, model, dataset.class_names, init_key)
        first = state.state_from(initial.variables, model, optimizer, adam=initial.adam)
    else:
        first = state.create_state(init_key, model, optimizer)
    metadata = {
        **config.to_dict(),
        "class_names": list(dataset.class_names),
        "train_images": len(dataset.train.labels),
        "train_digest": digest(dataset.train),
    }
    if batch_size == 1:  # which a batch norm may refuse
        try:
            jax.eval_shape(steps.train_step, first, Examples(*(a[:1] for a in train)), step_key)
        except ValueError as error:
            raise UserError(f"--batch-size 1 is too small: {error}") from error
    first, totals, train = sharding.put((first, Metrics.zeros(), train), replicated)
    fixed = (config, directory, mesh, train, val, dataset.test, metadata, schedule)
    return Run(*fixed, order_key, step_key), first, totals


def learning_rate(config: TrainConfig, saved: Mapping[str, Any], initial: Weights | None) -> float:
    """Return the rate asked for, else the resumed run's, the torch optimizer's, or 0.001."""
    last = initial.learning_rate if initial else None
    if config.learning_rate is None and last == 0:
        raise UserError(f"{config.init_from} stopped at a learning rate of 0: pass --learning-rate")
    return config.learning_rate or saved.get("learning_rate") or last or 1e-3


def check_same_data(run: Run, saved: Mapping[str, Any]) -> None:
    """Raise ``UserError`` if a run's data is not what its checkpoints say it began with."""
    now, then = run.metadata, {**run.metadata, **saved}
    change = difference(now["class_names"], then["class_names"], "the data", "the checkpoint")
    if not change and now["train_images"] != then["train_images"]:
        change = f"it has {now['train_images']} training images, and had {then['train_images']}"
    if not change and now["train_digest"] != then["train_digest"]:
        change = "it has as many training images, but other ones"
    if change:
        problem = f"{run.config.dataset} is not what the run was started with ({change})"
        raise UserError(f"{problem}: restore it, or start another run with --init-from this one")


def _fit_classes(
    config: TrainConfig,
    initial: Weights,
    model: nn.Module,
    class_names: tuple[str, ...],
    key: jax.Array,
) -> Weights:
    """Return the weights with a head for the data's classes; log if that or a name is new."""
    if initial.num_classes == len(class_names):
        initial.check_classes(str(config.init_from), config.dataset, class_names)
        return initial
    counts = config.init_from, initial.num_classes, config.dataset, len(class_names)
    last = ".".join(head(model))
    log.info("%s has %d classes, %s has %d: reinitialising the head (%s)", *counts, last)
    variables, adam = state.replace_head(key, initial.variables, initial.adam, model)
    num_classes = len(class_names)
    return Weights(initial.model, num_classes, variables, adam, class_names=class_names)
