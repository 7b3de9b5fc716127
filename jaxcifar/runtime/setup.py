"""What a training run starts from: its data, model, schedule and first state."""

import dataclasses
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

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
from jaxcifar.errors import UserError, difference, log
from jaxcifar.files import checkpoints, networks, weights
from jaxcifar.files.run import RunDirectory

# A program that runs once is compiled in half the time if it need not be fast.
QUICK: Any = {"xla_backend_optimization_level": 0}
QUICK |= {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}


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
    steps_per_epoch: int
    total_steps: int
    order_key: jax.Array
    step_key: jax.Array

    @property
    def resume_command(self) -> str:
        options = {name: getattr(self.config, name) for name in OF_PROCESS}
        workdir = str(self.directory.path)
        return self.command("train", TrainConfig, workdir=workdir, resume=True, **options)

    def command(self, name: str, kind: type[Options], **options: Any) -> str:
        """Return a command about this run, to paste into a shell."""
        own = {"model": self.config.model} if is_own(self.config.model) else {}
        return command_line(kind(**own, **options), *this_program(), name)


def prepare(config: TrainConfig, directory: RunDirectory) -> tuple[Run, state.TrainState, Metrics]:
    """Load the data, and build or restore the state to start from, on all devices."""
    mesh, batch_size = sharding.make_mesh(), config.batch_size
    if batch_size % mesh.size:
        raise UserError(f"--batch-size {batch_size} must be a multiple of the {mesh.size} devices")
    resumes, saved, initial = directory.last_step() is not None, directory.read_metadata(), None
    config.check_resumes(saved, directory.path)
    if config.resume and not resumes:
        log.info("%s has no checkpoint yet: the run starts from the beginning", directory.path)
    if config.init_from is not None and not resumes:
        initial = weights.load(config.init_from, model=config.model, ema=config.ema, optimizer=True)
    of_torch = initial and initial.learning_rate
    rate = config.learning_rate or saved.get("learning_rate") or of_torch or 1e-3
    config = dataclasses.replace(config, learning_rate=rate)
    dataset = data.load(config.dataset, config.data_dir)
    train, val = data.hold_out(dataset.train, config.val_fraction)
    if batch_size > (count := len(train.labels)):
        raise UserError(f"--batch-size {batch_size} is more than the {count} training images")
    metadata = {
        **config.to_dict(),
        "class_names": list(dataset.class_names),
        "train_images": len(dataset.train.labels),
        "train_digest": checkpoints.digest(dataset.train),
    }
    then = {**metadata, **saved}
    change = difference(metadata["class_names"], then["class_names"], "the data", "the checkpoint")
    if not change and metadata["train_digest"] != then["train_digest"]:
        now = len(dataset.train.labels)
        change = f"other training images: it has {now}, had {then['train_images']}"
    if change:
        problem = f"{config.dataset} is not what the run was started with ({change})"
        raise UserError(f"{problem}: restore it, or start another run with --init-from this one")
    model = networks.create(
        config.model,
        num_classes=len(dataset.class_names),
        dropout_rate=config.dropout_rate,
        dtype=config.precision,
    )
    steps_per_epoch = count // batch_size
    total_steps = min(config.epochs * steps_per_epoch, config.limit_steps or sys.maxsize)
    schedule = state.make_schedule(
        rate,
        decay_rate=config.decay_rate,
        decay_steps=config.decay_epochs * steps_per_epoch,
        warmup_steps=config.warmup_epochs * steps_per_epoch,
    )
    optimizer = state.make_optimizer(schedule, weight_decay=config.weight_decay)
    replicated = sharding.replicated(mesh)
    # All random numbers follow from these, the epoch and the step: resuming needs no more.
    split = jax.jit(lambda s: jax.random.split(jax.random.key(s), 3), out_shardings=replicated)
    _, order_key, step_key = split(np.uint32(config.seed))
    init_key = state.host_key(config.seed)
    if initial is None:
        create = partial(state.create_state, model=model, optimizer=optimizer)
        first = jax.jit(create, compiler_options=QUICK)(init_key)
    else:
        variables, adam = initial.variables, initial.adam
        if initial.num_classes == len(dataset.class_names):
            initial.check_classes(str(config.init_from), config.dataset, dataset.class_names)
        else:
            counts = initial.num_classes, config.dataset, len(dataset.class_names)
            message = "%s has %d classes, %s has %d: reinitialising the head (%s)"
            log.info(message, config.init_from, *counts, ".".join(head(model)))
            variables, adam = state.replace_head(init_key, variables, adam, model)
        first = state.state_from(variables, model, optimizer, adam=adam)
    if batch_size == 1:  # which a batch norm may refuse
        try:
            jax.eval_shape(steps.train_step, first, Examples(*(a[:1] for a in train)), step_key)
        except ValueError as error:
            raise UserError(f"--batch-size 1 is too small: {error}") from error
    first, totals, train = sharding.put((first, Metrics.zeros(), train), replicated)
    if resumes:
        first, totals = checkpoints.restore(directory.checkpoints_dir, first, totals)
    fixed = (config, directory, mesh, train, val, dataset.test, metadata, schedule)
    return Run(*fixed, steps_per_epoch, total_steps, order_key, step_key), first, totals
