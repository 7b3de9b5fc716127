"""The training loop: steps, reports, validation, checkpoints."""

import signal
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxcifar.core import sharding, steps
from jaxcifar.core.inference import logits
from jaxcifar.core.state import TrainState, epoch_order
from jaxcifar.core.steps import Metrics
from jaxcifar.errors import UserError, log
from jaxcifar.files.checkpoints import Checkpoints
from jaxcifar.files.run import MetricWriter
from jaxcifar.reporting.progress import Progress
from jaxcifar.reporting.scores import loss_and_accuracy
from jaxcifar.runtime import console, process
from jaxcifar.runtime.setup import Run

ACCURACY = "Accuracy of the model on the {} images: {:.2f} %"


class Outputs(NamedTuple):
    """Where a run reports to."""

    progress: Progress
    metrics: MetricWriter
    checkpoints: Checkpoints


def train(run: Run, state: TrainState, totals: Metrics, outputs: Outputs) -> TrainState:
    """Train from where the state stands; ``totals`` are the sums since its epoch began.

    A step is reported once its state is on its way to disk, or here if the run was killed before.
    """
    config, on_cpu = run.config, process.computes_on_cpu()
    sizes = {"examples": len(run.train.labels), "batch_size": config.batch_size}
    options = {"augment": config.augmentation, "skip_nonfinite": config.on_nonfinite == "skip"}
    order, unreported = None, None
    step = start = int(state.step)
    ends_epoch, reports, _ = _due(run, step)
    reported = {record["split"] for record in outputs.metrics.records if record["step"] == step}
    if step and reports and "train" not in reported:
        _report(run, outputs, step, totals, None)
    if step and ends_epoch and "val" not in reported:
        _report_val(run, outputs, step, _validate(run, state))
    with console.signals() as signals:
        while step < run.total_steps:
            epoch, done = divmod(step, run.steps_per_epoch)
            if order is None or done == 0:
                order = epoch_order(run.order_key, epoch, **sizes)
                order = jax.device_put(order, sharding.split(run.mesh, axis=1))
            if done == 0:
                totals = sharding.put(Metrics.zeros(), sharding.replicated(run.mesh))
            # On an accelerator one dispatch reaches to the next report or checkpoint.
            count = 1
            while not on_cpu and not any(_due(run, step + count)):
                count += 1
            inputs = state, totals, run.train, order, run.step_key
            if on_cpu and step == start:  # what the compiler frees is not kept for the steps
                steps.train_steps_at.lower(*inputs, count=count, **options).compile()
                process.keep_freed()
            state, totals = steps.train_steps_at(*inputs, count=count, **options)
            if unreported:  # read only now that the device has its next work
                _check_finite(run, outputs, *unreported)
                _report(run, outputs, *unreported, outputs.progress.pace())
                unreported = None
            step += count
            label = f"epoch {epoch + 1}/{config.epochs}"
            outputs.progress.advance(config.batch_size * count, label)
            stopped = multihost_utils.process_allgather(np.array(bool(signals)))  # of any process
            stops = bool(stopped.any()) and step < run.total_steps
            ends_epoch, reports, saves = _due(run, step)
            saves |= stops
            if on_cpu or saves:  # this waits for the step
                _check_finite(run, outputs, step, totals, state.params if saves else None)
            if reports and not on_cpu and not saves:
                unreported = step, totals
            elif reports or saves:
                pace = outputs.progress.pace()
                validation = _validate(run, state) if ends_epoch else None
                if saves:
                    accuracy = validation["accuracy"] if validation else None
                    outputs.checkpoints.save(state, totals, accuracy)
                if reports:
                    _report(run, outputs, step, totals, pace)
                _report_val(run, outputs, step, validation)
            if stops:
                outputs.checkpoints.finish()
                message = "Stopped after step %d of %d; continue with: %s"
                log.info(message, step, run.total_steps, run.resume_command)
                raise KeyboardInterrupt(signals[0] if signals else signal.SIGTERM)
    return state


def _due(run: Run, step: int) -> tuple[bool, bool, bool]:
    """Whether after so many steps an epoch ends, a report is due, and a checkpoint."""
    done, every = step % run.steps_per_epoch, run.config.checkpoint_every
    ends_epoch = done == 0 or step == run.total_steps
    reports = ends_epoch or done % run.config.log_every == 0
    return ends_epoch, reports, ends_epoch or bool(every and step % every == 0)


def _report(run: Run, outputs: Outputs, step: int, totals: Metrics, pace: float | None) -> None:
    epoch, done = divmod(step - 1, run.steps_per_epoch)
    loss, accuracy = totals.means()
    skipped = int(totals.nonfinite)
    line = f"Epoch [{epoch + 1}/{run.config.epochs}], Step [{done + 1}/{run.steps_per_epoch}]"
    line += f" Loss: {loss:.4f}" + (f" ({skipped} updates skipped)" if skipped else "")
    outputs.progress.result(line, f"training accuracy {100 * accuracy:.2f} %", pace)
    values = {"epoch": epoch + 1, "loss": loss, "accuracy": accuracy, "skipped": skipped or None}
    rate = float(run.schedule(step - 1))
    outputs.metrics.write(step, "train", **values, learning_rate=rate, images_per_second=pace)


def _validate(run: Run, state: TrainState) -> dict[str, float] | None:
    if run.val is None:
        return None
    images, labels = run.val
    outcome = logits(state, images, batch_size=run.config.batch_size, mesh=run.mesh)
    loss, accuracy = loss_and_accuracy(outcome, labels)
    return {"images": len(labels), "loss": loss, "accuracy": accuracy}


def _report_val(run: Run, outputs: Outputs, step: int, scores: dict[str, float] | None) -> None:
    if scores is not None:
        images = f"{scores['images']} validation"
        outputs.progress.result(ACCURACY.format(images, 100 * scores["accuracy"]))
        outputs.metrics.write(step, "val", epoch=-(-step // run.steps_per_epoch), **scores)


def _check_finite(run: Run, outputs: Outputs, step: int, sums: Metrics, params: Any = None) -> None:
    """End the run at the first loss that is not finite, or if a parameter is not."""
    nonfinite = int(sums.nonfinite)
    if nonfinite and run.config.on_nonfinite == "stop":  # no later loss is finite
        step += 1 - nonfinite
        problem = f"the loss is not finite at step {step}"
    elif params is not None and not steps.all_finite(params):
        problem = f"a parameter is not finite after step {step}"
    else:
        return
    outputs.checkpoints.finish()
    advice = "there is no checkpoint yet; start again with a lower --learning-rate"
    if saved := run.directory.last_step():
        command = f"{run.resume_command} --on-nonfinite skip"
        advice = f"continue from the checkpoint of step {saved} with: {command}"
    rate = float(run.schedule(step - 1))
    raise UserError(f"{problem} of {run.total_steps}, learning rate {rate:g}: {advice}")
