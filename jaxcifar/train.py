"""Trains a model: ``python -m jaxcifar.train``, or ``train_and_evaluate(config)``."""

import dataclasses
import signal
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from jaxcifar import cli
from jaxcifar.config import TrainConfig
from jaxcifar.errors import UserError
from jaxcifar.files import run as workdir
from jaxcifar.runtime import process as runtime

if TYPE_CHECKING:
    import flax.linen as nn
    import jax
    import numpy as np
    import optax
    from jax.sharding import Mesh
    from orbax.checkpoint import v1 as ocp

    from jaxcifar.core.state import TrainState
    from jaxcifar.core.steps import Metrics
    from jaxcifar.data import Examples
    from jaxcifar.files.metrics import MetricWriter, Progress
    from jaxcifar.files.weights import Weights


@dataclasses.dataclass(frozen=True)
class History:
    """What a run leaves.

    Attributes:
      workdir: the folder with its checkpoints and logs.
      records: what ``metrics.jsonl`` holds: a dict for each report, with ``step``,
        ``split`` (train, val or test), ``loss``, ``accuracy`` and others.
      test_accuracy: of the final state, from 0 to 1.
      state: the final state.
    """

    workdir: Path
    records: list[dict[str, Any]]
    test_accuracy: float
    state: "TrainState"


class Run(NamedTuple):
    """What stays the same all through a run.

    Attributes:
      config: with the learning rate resolved.
      folder: the run's.
      mesh: the devices.
      train: the images trained on, whole on each device.
      val: those held out, or None.
      test: the test images.
      class_names: in the order of the labels.
      data: what tells whether a resumed run has the same data.
      schedule: the learning rate by steps.
      order_key: draws the order of each epoch.
      step_key: draws crops, flips and dropout.
      steps_per_epoch: full batches in ``train``.
    """

    config: TrainConfig
    folder: Path
    mesh: "Mesh"
    train: "Examples"
    val: "Examples | None"
    test: "Examples"
    class_names: tuple[str, ...]
    data: dict[str, Any]
    schedule: "optax.Schedule"
    order_key: "jax.Array"
    step_key: "jax.Array"
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch


class Outputs(NamedTuple):
    """Where a run leaves what it finds."""

    progress: "Progress"
    writer: "MetricWriter"
    checkpoints: "ocp.training.Checkpointer"


def train_and_evaluate(config: TrainConfig) -> History:
    """Trains as configured and evaluates on the test images.

    SIGINT and SIGTERM leave a checkpoint between two steps and say how to resume.

    Raises:
      UserError: the configuration does not fit the data, the devices or the folder; the loss
        is not finite; a checkpoint cannot be written.
      KeyboardInterrupt: after a signal, with its number as argument.
    """
    runtime.dispatch_in_turn()
    if config.coordinator is not None:
        runtime.join(config.coordinator, config.num_processes, config.process_id)
    initial = _initial_weights(config)
    folder = workdir.choose(config)
    learning_rate = _learning_rate(config, folder, initial)
    config = dataclasses.replace(config, learning_rate=learning_rate)

    import jax

    from jaxcifar.evaluate import predict
    from jaxcifar.files import checkpoints as checkpoint
    from jaxcifar.files.metrics import MetricWriter, Progress
    from jaxcifar.reporting.scores import score

    with ExitStack() as stack:
        silent = not runtime.is_first_process()
        if not silent:
            stack.enter_context(workdir.locked(folder))
        run, state, totals = _prepare(config, folder, initial)
        del initial
        checkpoints = stack.enter_context(checkpoint.open_checkpoints(folder, keep=config.keep))
        if config.resume:
            checkpoint.require_data(checkpoints, config.dataset, run.class_names, run.data)
            state, totals = checkpoint.restore(checkpoints, state, totals)
        start = int(state.step)
        if start > run.total_steps:
            raise UserError(
                f"{folder} stands at step {start}, beyond the {run.total_steps} steps of"
                f" --epochs {config.epochs}: ask for more epochs"
            )
        if not silent:
            workdir.write_config(folder, config)
        writer = stack.enter_context(closing(MetricWriter(folder, start, silent=silent)))
        images = config.batch_size * run.total_steps
        progress = Progress(images, config.batch_size * start, silent=silent)
        stack.callback(progress.close)
        outputs = Outputs(progress, writer, checkpoints)
        try:
            state = _train(run, state, totals, outputs)
            progress.close()
            logits = predict(
                state, run.test, batch_size=config.batch_size, mesh=run.mesh, progress=not silent
            )
            checkpoint.finish(checkpoints)
        except jax.errors.JaxRuntimeError as error:
            if jax.process_count() > 1:
                runtime.leave(error)
            raise
        found = score(logits, jax.device_get(run.test.labels), run.class_names)
        progress.result(f"Accuracy of the model on the test images: {100 * found.accuracy:.2f} %")
        writer.write(run.total_steps, "test", loss=found.loss, accuracy=found.accuracy)
        if config.report and not silent:
            _leave_report(run, logits)
        return History(folder, writer.records, found.accuracy, state)


def _leave_report(run: Run, logits: "np.ndarray") -> None:
    """A report that cannot be written does not spoil the run."""
    import jax

    from jaxcifar import report

    examples = jax.device_get(run.test)
    try:
        report.save_outputs(
            run.folder, report.collect(run.total_steps, run.class_names, logits, examples)
        )
        report.make_report([run.folder])
    except OSError as error:
        runtime.note(
            f"Warning: the report could not be written ({error}); make it with:"
            f" python -m jaxcifar.report {run.folder}"
        )


def _prepare(
    config: TrainConfig, folder: Path, initial: "Weights | None"
) -> "tuple[Run, TrainState, Metrics]":
    """Loads the data and builds the first state, both on all devices."""
    import jax

    from jaxcifar import data
    from jaxcifar.core import models, sharding, state, steps
    from jaxcifar.runtime import compile_cache

    if config.compile_cache:
        compile_cache.enable()
    mesh = sharding.make_mesh()
    sharding.require_divisible(config.batch_size, mesh)
    dataset = data.load(config.dataset, config.data_dir)
    identity = data.identity(dataset.train)
    train, val = data.hold_out(dataset.train, config.val_fraction)
    steps_per_epoch = len(train.labels) // config.batch_size
    if steps_per_epoch == 0:
        raise UserError(
            f"--batch-size {config.batch_size} is more than the {len(train.labels)} training images"
        )
    model = models.create_model(
        config.model,
        num_classes=len(dataset.class_names),
        dropout_rate=config.dropout_rate,
        dtype=config.precision,
    )
    if config.precision == "bfloat16" and runtime.computes_on_cpu():
        runtime.warn_of_slow_bfloat16()
    assert config.learning_rate is not None
    schedule = state.make_schedule(
        config.learning_rate,
        decay_rate=config.decay_rate,
        decay_steps=config.decay_epochs * steps_per_epoch,
    )
    everywhere = sharding.replicated(mesh)

    # Everything random is drawn from these, the epoch and the step: resuming needs no more.
    @partial(jax.jit, out_shardings=everywhere)
    def draw_keys() -> jax.Array:
        return jax.random.split(jax.random.key(config.seed), 3)

    init_key, order_key, step_key = draw_keys()
    optimizer = state.make_optimizer(schedule)
    if initial:
        initial = _fitted(config, initial, model, dataset.class_names, init_key)
        first = state.state_from(initial.variables, model, optimizer, adam=initial.adam)
    else:
        first = state.create_state(init_key, model, optimizer)
    first, totals, train, val, test = sharding.put(
        (first, steps.Metrics.zeros(), train, val, dataset.test), everywhere
    )
    run = Run(
        *(config, folder, mesh, train, val, test, dataset.class_names, identity),
        *(schedule, order_key, step_key, steps_per_epoch),
    )
    return run, first, totals


def _train(
    run: Run, train_state: "TrainState", totals: "Metrics", outputs: Outputs
) -> "TrainState":
    """Trains from where the state stands to the end, with reports and checkpoints."""
    import jax

    from jaxcifar.core import sharding, state, steps
    from jaxcifar.files import checkpoints as checkpoint

    config, steps_per_epoch = run.config, run.steps_per_epoch
    one_by_one = runtime.computes_on_cpu()
    by_step = sharding.split(run.mesh, axis=1)
    order, unreported = None, None
    step = start = int(train_state.step)
    with runtime.signals() as signals:
        while step < run.total_steps:
            epoch, step_in_epoch = divmod(step, steps_per_epoch)
            if order is None or step_in_epoch == 0:
                order = state.epoch_order(
                    run.order_key,
                    epoch,
                    examples=len(run.train.labels),
                    batch_size=config.batch_size,
                )
                order = jax.device_put(order, by_step)
            if step_in_epoch == 0:
                totals = sharding.put(steps.Metrics.zeros(), sharding.replicated(run.mesh))
            # On an accelerator one dispatch goes to the next report or checkpoint. On a CPU
            # dispatch is cheap, and XLA's own convolution very slow inside a loop.
            count = 1 if one_by_one else _steps_to_pause(config, step, steps_per_epoch)
            train_state, totals = steps.train_steps_at(
                *(train_state, totals, run.train, order, run.step_key),
                augment=config.augments,
                flip=config.flips,
                skip_nonfinite=config.on_nonfinite == "skip",
                count=count,
            )
            if unreported:  # read only now that the device has its next work
                _report(run, outputs, *unreported)
                unreported = None
            if one_by_one:
                jax.block_until_ready(totals)
                _check_loss(run, outputs, step + 1, totals)
                if step == start:
                    runtime.keep_freed_memory()
            step += count
            outputs.progress.advance(
                config.batch_size * count, f"epoch {epoch + 1}/{config.epochs}"
            )

            done = step_in_epoch + count
            ends_epoch = done == steps_per_epoch
            stops = runtime.agreed(bool(signals)) and step < run.total_steps
            every = config.checkpoint_every
            saves = ends_epoch or stops or bool(every and step % every == 0)
            if ends_epoch or done % config.log_every == 0:
                unreported = step, totals
            if unreported and (one_by_one or saves):
                _report(run, outputs, *unreported)
                unreported = None
            val_accuracy = _validate(run, outputs, step, train_state) if ends_epoch else None
            if saves:
                _save(run, outputs, train_state, totals, val_accuracy)
            if stops:
                checkpoint.finish(outputs.checkpoints)
                outputs.progress.note(
                    f"Stopped after step {step} of {run.total_steps}; continue with:"
                    f" python -m jaxcifar.train --workdir {run.folder} --resume"
                )
                raise KeyboardInterrupt(signals[0] if signals else signal.SIGTERM)
    return train_state


def _report(run: Run, outputs: Outputs, step: int, totals: "Metrics") -> None:
    """Prints and logs the epoch's means after ``step`` updates."""
    _check_loss(run, outputs, step, totals)
    config = run.config
    epoch, done = divmod(step - 1, run.steps_per_epoch)
    loss, accuracy = totals.means()
    skipped = int(totals.nonfinite)
    outputs.progress.result(
        f"Epoch [{epoch + 1}/{config.epochs}], Step [{done + 1}/{run.steps_per_epoch}]"
        f" Loss: {loss:.4f}" + (f" ({skipped} updates skipped)" if skipped else "")
    )
    outputs.progress.note_pace()
    outputs.writer.write(
        step,
        "train",
        epoch=epoch + 1,
        loss=loss,
        accuracy=accuracy,
        skipped=skipped or None,
        learning_rate=float(run.schedule(step - 1)),
        images_per_second=outputs.progress.images_per_second,
    )


def _check_loss(run: Run, outputs: Outputs, step: int, totals: "Metrics") -> None:
    """Ends the run at the first loss that is not finite; after it none is."""
    nonfinite = int(totals.nonfinite)
    if nonfinite and run.config.on_nonfinite == "stop":
        first = step - nonfinite + 1
        _stop_nonfinite(run, outputs, f"the loss is not finite at step {first}", first)


def _stop_nonfinite(run: Run, outputs: Outputs, what: str, step: int) -> NoReturn:
    from jaxcifar.files import checkpoints as checkpoint

    checkpoint.finish(outputs.checkpoints)
    latest = outputs.checkpoints.latest
    resume = f"python -m jaxcifar.train --workdir {run.folder} --resume --on-nonfinite skip"
    raise UserError(
        f"{what} of {run.total_steps}, learning rate {float(run.schedule(step - 1)):g}: "
        + (
            f"go on from the checkpoint of step {latest.step} with: {resume}"
            if latest
            else "there is no checkpoint yet; start again with a lower --learning-rate"
        )
    )


def _validate(run: Run, outputs: Outputs, step: int, train_state: "TrainState") -> float | None:
    """Prints, logs and returns the accuracy on the images held out, if there are any."""
    from jaxcifar.evaluate import evaluate

    if run.val is None:
        return None
    totals = evaluate(train_state, run.val, batch_size=run.config.batch_size, mesh=run.mesh)
    loss, accuracy = totals.means()
    outputs.progress.result(
        f"Accuracy of the model on the {len(run.val.labels)} validation images:"
        f" {100 * accuracy:.2f} %"
    )
    epoch = step // run.steps_per_epoch
    outputs.writer.write(step, "val", epoch=epoch, loss=loss, accuracy=accuracy)
    return accuracy


def _save(
    run: Run,
    outputs: Outputs,
    train_state: "TrainState",
    totals: "Metrics",
    val_accuracy: float | None,
) -> None:
    """Saves a state that is worth to go on from."""
    from jaxcifar.core import steps
    from jaxcifar.files import checkpoints as checkpoint

    step = int(train_state.step)
    _check_loss(run, outputs, step, totals)
    if not steps.all_finite(train_state.params):
        _stop_nonfinite(run, outputs, f"a parameter is not finite after step {step}", step)
    checkpoint.save(
        *(outputs.checkpoints, train_state, totals, run.config),
        class_names=run.class_names,
        data=run.data,
        val_accuracy=val_accuracy,
    )


def _steps_to_pause(config: TrainConfig, step: int, steps_per_epoch: int) -> int:
    """Steps from ``step`` to the next report, checkpoint or end of the epoch."""
    done = step % steps_per_epoch
    pauses = [steps_per_epoch - done, config.log_every - done % config.log_every]
    if config.checkpoint_every:
        pauses.append(config.checkpoint_every - step % config.checkpoint_every)
    return min(pauses)


def _initial_weights(config: TrainConfig) -> "Weights | None":
    """What --init-from holds; a resumed run has its own."""
    if config.init_from is None or config.resume:
        return None
    from jaxcifar.files import weights

    initial = weights.load(config.init_from, model=config.model, ema=config.ema)
    initial.tell(config.init_from, optimizer=True)
    return initial


def _fitted(
    config: TrainConfig,
    initial: "Weights",
    model: "nn.Module",
    class_names: tuple[str, ...],
    key: "jax.Array",
) -> "Weights":
    """The weights with a head for the data's classes; a line says when it, or a name, is new."""
    from jaxcifar.core import models, state

    source, count = str(config.init_from), len(class_names)
    if initial.num_classes == count:
        initial.warn_of_names(source, config.dataset, class_names)
        return initial
    runtime.note(
        f"{source} has {initial.num_classes} classes, {config.dataset} has {count}: the head"
        f" {'/'.join(models.head(model))} starts anew"
    )
    variables, adam = state.with_new_head(key, initial.variables, initial.adam, model)
    return initial._replace(
        variables=variables, adam=adam, num_classes=count, class_names=class_names
    )


def _learning_rate(config: TrainConfig, folder: Path, initial: "Weights | None") -> float:
    """The one asked for, else that of the run that goes on, or the torch optimizer's, or 0.001."""
    if config.learning_rate is None and config.resume:
        config = workdir.read_config(folder)
    if config.learning_rate is not None:
        return config.learning_rate
    if initial is None or initial.learning_rate is None:
        return 1e-3
    if initial.learning_rate == 0:
        raise UserError(f"{config.init_from} stopped at a learning rate of 0: give --learning-rate")
    return initial.learning_rate


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    flags = cli.parse(
        TrainConfig,
        argv,
        prog="python -m jaxcifar.train",
        description="Trains a network and prints its accuracy on the test images.",
    )
    config = TrainConfig(**flags)
    if config.resume:
        saved = workdir.read_config(Path(config.workdir or ""))
        config = dataclasses.replace(saved, **flags)
    history = train_and_evaluate(config)
    runtime.note(f"Checkpoints, logs and report are in {history.workdir}")


if __name__ == "__main__":
    cli.run(main, prog="jaxcifar.train")
