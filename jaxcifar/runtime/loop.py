"""The training loop: steps, reports, validation, checkpoints."""

import logging
import signal
from typing import NamedTuple, NoReturn

import jax

from jaxcifar.config.train import TrainConfig
from jaxcifar.core import sharding, steps
from jaxcifar.core.inference import logits
from jaxcifar.core.state import TrainState, epoch_order
from jaxcifar.core.steps import Metrics
from jaxcifar.errors import UserError
from jaxcifar.files.checkpoints import Checkpoints
from jaxcifar.files.run import MetricWriter
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


def train(run: Run, state: TrainState, totals: Metrics, outputs: Outputs) -> TrainState:
    """Train from where the state stands; ``totals`` are the sums since its epoch began."""
    config, on_cpu = run.config, process.computes_on_cpu()
    sizes = {"examples": len(run.train.labels), "batch_size": config.batch_size}
    options = {"augment": config.augmentation, "skip_nonfinite": config.on_nonfinite == "skip"}
    order, unreported = None, None
    step = start = int(state.step)
    with process.signals() as signals:
        while step < run.total_steps:
            epoch, done = divmod(step, run.steps_per_epoch)
            if order is None or done == 0:
                order = epoch_order(run.order_key, epoch, **sizes)
                order = jax.device_put(order, sharding.split(run.mesh, axis=1))
            if done == 0:
                totals = sharding.put(Metrics.zeros(), sharding.replicated(run.mesh))
            # On an accelerator one dispatch reaches to the next report or checkpoint. On a CPU
            # dispatch is cheap, and XLA's own convolution very slow inside a loop.
            count = 1 if on_cpu else _steps_to_pause(config, step, run.steps_per_epoch)
            state, totals = steps.train_steps_at(
                state, totals, run.train, order, run.step_key, count=count, **options
            )
            if unreported:  # read only now that the device has its next work
                _report(run, outputs, *unreported)
                unreported = None
            if on_cpu:
                jax.block_until_ready(totals)
                _check_loss(run, outputs, step + 1, totals)
                if step == start:
                    process.keep_freed_memory()
            step, done = step + count, done + count
            label = f"epoch {epoch + 1}/{config.epochs}"
            outputs.progress.advance(config.batch_size * count, label)

            ends_epoch = done == run.steps_per_epoch or step == run.total_steps
            stops = distributed.agreed(bool(signals)) and step < run.total_steps
            every = config.checkpoint_every
            saves = ends_epoch or stops or bool(every and step % every == 0)
            if ends_epoch or done % config.log_every == 0:
                unreported = step, totals
            if unreported and (on_cpu or saves):
                _report(run, outputs, *unreported)
                unreported = None
            val_accuracy = _validate(run, outputs, step, state) if ends_epoch else None
            if saves:
                _save(run, outputs, state, totals, val_accuracy)
            if stops:
                outputs.checkpoints.finish()
                message = "Stopped after step %d of %d; continue with: %s"
                log.info(message, step, run.total_steps, run.resume_command)
                raise KeyboardInterrupt(signals[0] if signals else signal.SIGTERM)
    return state


def _steps_to_pause(config: TrainConfig, step: int, steps_per_epoch: int) -> int:
    """Return the steps from ``step`` to the next report, checkpoint or end of the epoch."""
    done = step % steps_per_epoch
    pauses = [steps_per_epoch - done, config.log_every - done % config.log_every]
    if config.checkpoint_every:
        pauses.append(config.checkpoint_every - step % config.checkpoint_every)
    if config.limit_steps:
        pauses.append(config.limit_steps - step)
    return min(pauses)


def _report(run: Run, outputs: Outputs, step: int, totals: Metrics) -> None:
    """Print and log the epoch's means after ``step`` updates."""
    _check_loss(run, outputs, step, totals)
    epoch, done = divmod(step - 1, run.steps_per_epoch)
    loss, accuracy = totals.means()
    skipped = int(totals.nonfinite)
    line = f"Epoch [{epoch + 1}/{run.config.epochs}], Step [{done + 1}/{run.steps_per_epoch}]"
    line += f" Loss: {loss:.4f}" + (f" ({skipped} updates skipped)" if skipped else "")
    pace = outputs.progress.result(line, f"training accuracy {100 * accuracy:.2f} %")
    values = {"epoch": epoch + 1, "loss": loss, "accuracy": accuracy, "skipped": skipped or None}
    rate = float(run.schedule(step - 1))
    outputs.metrics.write(step, "train", **values, learning_rate=rate, images_per_second=pace)


def _validate(run: Run, outputs: Outputs, step: int, state: TrainState) -> float | None:
    """Print, log and return the validation accuracy, if images are held out."""
    if run.val is None:
        return None
    images, labels = run.val
    outcome = logits(state, images, batch_size=run.config.batch_size, mesh=run.mesh)
    loss, accuracy = loss_and_accuracy(outcome, labels)
    which = f"{len(labels)} validation images"
    outputs.progress.result(f"Accuracy of the model on the {which}: {100 * accuracy:.2f} %")
    epoch = -(-step // run.steps_per_epoch)
    values = {"images": len(labels), "loss": loss, "accuracy": accuracy}
    outputs.metrics.write(step, "val", epoch=epoch, **values)
    return accuracy


def _save(
    run: Run, outputs: Outputs, state: TrainState, totals: Metrics, val: float | None
) -> None:
    """Save a state from which training can continue."""
    step = int(state.step)
    _check_loss(run, outputs, step, totals)
    if not steps.all_finite(state.params):
        _stop(run, outputs, f"a parameter is not finite after step {step}", step)
    outputs.checkpoints.save(state, totals, run.metadata, val_accuracy=val)


def _check_loss(run: Run, outputs: Outputs, step: int, totals: Metrics) -> None:
    """End the run at the first loss that is not finite; no later one is."""
    nonfinite = int(totals.nonfinite)
    if nonfinite and run.config.on_nonfinite == "stop":
        first = step - nonfinite + 1
        _stop(run, outputs, f"the loss is not finite at step {first}", first)


def _stop(run: Run, outputs: Outputs, reason: str, step: int) -> NoReturn:
    outputs.checkpoints.finish()
    advice = "there is no checkpoint yet; start again with a lower --learning-rate"
    if saved := outputs.checkpoints.steps:
        command = f"{run.resume_command} --on-nonfinite skip"
        advice = f"continue from the checkpoint of step {saved[-1]} with: {command}"
    rate = float(run.schedule(step - 1))
    raise UserError(f"{reason} of {run.total_steps}, learning rate {rate:g}: {advice}")
