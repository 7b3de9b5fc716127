"""The training loop: steps, reports, validation, checkpoints."""

import logging
import signal
from typing import NamedTuple, NoReturn

import jax

from jaxcifar.config import TrainConfig
from jaxcifar.core import sharding, state, steps
from jaxcifar.core.inference import logits
from jaxcifar.errors import UserError
from jaxcifar.files.checkpoints import Checkpoints
from jaxcifar.files.metrics import MetricWriter
from jaxcifar.reporting.progress import Progress
from jaxcifar.reporting.scores import loss_and_accuracy
from jaxcifar.runtime import distributed, process
from jaxcifar.runtime.setup import Run

log = logging.getLogger(__name__)


class Outputs(NamedTuple):
    """Where a run reports to."""

    progress: Progress
    metrics: MetricWriter
    checkpoints: Checkpoints


def train(
    run: Run, train_state: state.TrainState, totals: steps.Metrics, outputs: Outputs
) -> state.TrainState:
    """Train from where the state stands to the end, reporting and saving on the way."""
    config, steps_per_epoch = run.config, run.steps_per_epoch
    on_cpu = process.computes_on_cpu()
    order, unreported = None, None
    step = start = int(train_state.step)
    with process.signals() as signals:
        while step < run.total_steps:
            epoch, step_in_epoch = divmod(step, steps_per_epoch)
            if order is None or step_in_epoch == 0:
                order = _epoch_order(run, epoch)
            if step_in_epoch == 0:
                totals = sharding.put(steps.Metrics.zeros(), sharding.replicated(run.mesh))
            # On an accelerator one dispatch reaches to the next report or checkpoint. On a CPU
            # dispatch is cheap, and XLA's own convolution very slow inside a loop.
            count = 1 if on_cpu else _steps_to_pause(config, step, steps_per_epoch)
            train_state, totals = steps.train_steps_at(
                *(train_state, totals, run.train, order, run.step_key),
                augment=config.augmentation,
                skip_nonfinite=config.on_nonfinite == "skip",
                count=count,
            )
            if unreported:  # read only now that the device has its next work
                _report(run, outputs, *unreported)
                unreported = None
            if on_cpu:
                jax.block_until_ready(totals)
                _check_loss(run, outputs, step + 1, totals)
                if step == start:
                    process.keep_freed_memory()
            step += count
            outputs.progress.advance(
                config.batch_size * count, f"epoch {epoch + 1}/{config.epochs}"
            )

            done = step_in_epoch + count
            ends_epoch = done == steps_per_epoch
            stops = distributed.agreed(bool(signals)) and step < run.total_steps
            every = config.checkpoint_every
            saves = ends_epoch or stops or bool(every and step % every == 0)
            if ends_epoch or done % config.log_every == 0:
                unreported = step, totals
            if unreported and (on_cpu or saves):
                _report(run, outputs, *unreported)
                unreported = None
            val_accuracy = _validate(run, outputs, step, train_state) if ends_epoch else None
            if saves:
                _save(run, outputs, train_state, totals, val_accuracy)
            if stops:
                outputs.checkpoints.finish()
                log.info(
                    "Stopped after step %d of %d; continue with: %s",
                    *(step, run.total_steps, run.resume_command),
                )
                raise KeyboardInterrupt(signals[0] if signals else signal.SIGTERM)
    return train_state


def _epoch_order(run: Run, epoch: int) -> jax.Array:
    """Return the batches of an epoch, each split over the devices."""
    order = state.epoch_order(
        run.order_key,
        epoch,
        examples=len(run.train.labels),
        batch_size=run.config.batch_size,
    )
    return jax.device_put(order, sharding.split(run.mesh, axis=1))


def _steps_to_pause(config: TrainConfig, step: int, steps_per_epoch: int) -> int:
    """Return the steps from ``step`` to the next report, checkpoint or end of the epoch."""
    done = step % steps_per_epoch
    pauses = [steps_per_epoch - done, config.log_every - done % config.log_every]
    if config.checkpoint_every:
        pauses.append(config.checkpoint_every - step % config.checkpoint_every)
    return min(pauses)


def _report(run: Run, outputs: Outputs, step: int, totals: steps.Metrics) -> None:
    """Print and log the epoch's means after ``step`` updates."""
    _check_loss(run, outputs, step, totals)
    epoch, done = divmod(step - 1, run.steps_per_epoch)
    loss, accuracy = totals.means()
    skipped = int(totals.nonfinite)
    outputs.progress.result(
        f"Epoch [{epoch + 1}/{run.config.epochs}], Step [{done + 1}/{run.steps_per_epoch}]"
        f" Loss: {loss:.4f}" + (f" ({skipped} updates skipped)" if skipped else "")
    )
    outputs.progress.note_pace()
    outputs.metrics.write(
        step,
        "train",
        epoch=epoch + 1,
        loss=loss,
        accuracy=accuracy,
        skipped=skipped or None,
        learning_rate=float(run.schedule(step - 1)),
        images_per_second=outputs.progress.images_per_second,
    )


def _validate(run: Run, outputs: Outputs, step: int, train_state: state.TrainState) -> float | None:
    """Print, log and return the validation accuracy, if images are held out."""
    if run.val is None:
        return None
    val_logits = logits(
        train_state, run.val.images, batch_size=run.config.batch_size, mesh=run.mesh
    )
    loss, accuracy = loss_and_accuracy(val_logits, run.val.labels)
    outputs.progress.result(
        f"Accuracy of the model on the {len(run.val.labels)} validation images:"
        f" {100 * accuracy:.2f} %"
    )
    epoch = step // run.steps_per_epoch
    outputs.metrics.write(step, "val", epoch=epoch, loss=loss, accuracy=accuracy)
    return accuracy


def _save(
    run: Run,
    outputs: Outputs,
    train_state: state.TrainState,
    totals: steps.Metrics,
    val_accuracy: float | None,
) -> None:
    """Save a state from which training can continue."""
    step = int(train_state.step)
    _check_loss(run, outputs, step, totals)
    if not steps.all_finite(train_state.params):
        _stop(run, outputs, f"a parameter is not finite after step {step}", step)
    outputs.checkpoints.save(train_state, totals, run.metadata, val_accuracy=val_accuracy)


def _check_loss(run: Run, outputs: Outputs, step: int, totals: steps.Metrics) -> None:
    """End the run at the first loss that is not finite; no later one is."""
    nonfinite = int(totals.nonfinite)
    if nonfinite and run.config.on_nonfinite == "stop":
        first = step - nonfinite + 1
        _stop(run, outputs, f"the loss is not finite at step {first}", first)


def _stop(run: Run, outputs: Outputs, reason: str, step: int) -> NoReturn:
    outputs.checkpoints.finish()
    saved = outputs.checkpoints.steps
    advice = "there is no checkpoint yet; start again with a lower --learning-rate"
    if saved:
        command = f"{run.resume_command} --on-nonfinite skip"
        advice = f"continue from the checkpoint of step {saved[-1]} with: {command}"
    rate = float(run.schedule(step - 1))
    raise UserError(f"{reason} of {run.total_steps}, learning rate {rate:g}: {advice}")
