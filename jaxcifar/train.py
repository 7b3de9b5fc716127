"""Trains a model: ``python -m jaxcifar.train``, or ``train_and_evaluate(config)``."""

import dataclasses
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxcifar import cli, runtime
from jaxcifar.config import TrainConfig, flag
from jaxcifar.errors import UserError

if TYPE_CHECKING:
    from jaxcifar.state import TrainState
    from jaxcifar.weights import Weights

CONFIG_FILE = "config.json"


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


def train_and_evaluate(config: TrainConfig) -> History:
    """Trains as configured and evaluates on the test images.

    SIGINT and SIGTERM leave a checkpoint between two steps and say how to resume.

    Raises:
      UserError: the configuration does not fit the data or the folder.
      KeyboardInterrupt: after a signal, with its number as argument.
    """
    runtime.dispatch_in_turn()
    initial = _initial_weights(config)
    workdir = _prepare_workdir(config)
    learning_rate = _learning_rate(config, workdir, initial)
    config = dataclasses.replace(config, learning_rate=learning_rate)

    import jax

    from jaxcifar import checkpoint, compile_cache, data, models, state, steps
    from jaxcifar.evaluate import evaluate
    from jaxcifar.logs import MetricWriter, Progress

    if config.compile_cache:
        compile_cache.enable()
    dataset = data.load(config.dataset, config.data_dir)
    train, val = data.hold_out(dataset.train, config.val_fraction)
    steps_per_epoch = len(train.labels) // config.batch_size
    if steps_per_epoch == 0:
        raise UserError(
            f"--batch-size {config.batch_size} is more than the {len(train.labels)} training images"
        )
    total_steps = config.epochs * steps_per_epoch
    model = models.create_model(
        config.model,
        num_classes=len(dataset.class_names),
        dropout_rate=config.dropout_rate,
        dtype=config.precision,
    )
    if initial:
        initial.require_classes(str(config.init_from), config.dataset, len(dataset.class_names))
    if config.precision == "bfloat16" and jax.default_backend() == "cpu":
        runtime.warn_of_slow_bfloat16()
    schedule = state.make_schedule(
        learning_rate,
        decay_rate=config.decay_rate,
        decay_steps=config.decay_epochs * steps_per_epoch,
    )
    # Everything random is drawn from these, the epoch and the step: resuming needs no more.
    init_key, order_key, step_key = jax.random.split(jax.random.key(config.seed), 3)
    optimizer = state.make_optimizer(schedule)
    if initial:
        train_state = state.state_from(initial.variables, model, optimizer, adam=initial.adam)
        del initial
    else:
        train_state = state.create_state(init_key, model, optimizer)
    totals = steps.Metrics.zeros()
    train, val, test = jax.device_put((train, val, dataset.test))

    with ExitStack() as stack:
        checkpoints = stack.enter_context(checkpoint.open_checkpoints(workdir, keep=config.keep))
        if config.resume:
            train_state, totals = checkpoint.restore(checkpoints, train_state, totals)
        start = int(train_state.step)
        if start > total_steps:
            raise UserError(
                f"{workdir} stands at step {start}, beyond the {total_steps} steps of"
                f" --epochs {config.epochs}: ask for more epochs"
            )
        _write_config(workdir, config)
        writer = stack.enter_context(closing(MetricWriter(workdir, start)))
        images = config.batch_size * total_steps
        progress = Progress(images, min(images, config.batch_size * start))
        stack.callback(progress.close)
        signals = stack.enter_context(_signals())

        def save(val_accuracy: float | None = None) -> None:
            checkpoint.save(checkpoints, train_state, totals, config, val_accuracy=val_accuracy)

        def report(step: int, totals: steps.Metrics) -> None:
            epoch, done = divmod(step - 1, steps_per_epoch)
            loss, accuracy = totals.means()
            progress.result(
                f"Epoch [{epoch + 1}/{config.epochs}], Step [{done + 1}/{steps_per_epoch}]"
                f" Loss: {loss:.4f}"
            )
            progress.note_pace()
            writer.write(
                step,
                "train",
                epoch=epoch + 1,
                loss=loss,
                accuracy=accuracy,
                learning_rate=float(schedule(step - 1)),
                images_per_second=progress.images_per_second,
            )

        one_by_one = _dispatches_each_step()
        order, unreported = None, None
        step = start
        while step < total_steps:
            epoch, step_in_epoch = divmod(step, steps_per_epoch)
            if order is None or step_in_epoch == 0:
                order = state.epoch_order(
                    order_key, epoch, examples=len(train.labels), batch_size=config.batch_size
                )
            if step_in_epoch == 0:
                totals = steps.Metrics.zeros()
            # On an accelerator one dispatch goes to the next report or checkpoint.
            count = 1 if one_by_one else _steps_to_pause(config, step, steps_per_epoch)
            train_state, totals = steps.train_steps_at(
                train_state, totals, train, order, step_key, augment=config.augments, count=count
            )
            if unreported:  # read only now that the device has its next work
                report(*unreported)
                unreported = None
            if one_by_one:
                jax.block_until_ready(totals)
                if step == start:
                    runtime.keep_freed_memory()
            step += count
            progress.advance(config.batch_size * count, f"epoch {epoch + 1}/{config.epochs}")

            done = step_in_epoch + count
            ends_epoch = done == steps_per_epoch
            stops = bool(signals) and step < total_steps
            every = config.checkpoint_every
            saves = ends_epoch or stops or bool(every and step % every == 0)
            if ends_epoch or done % config.log_every == 0:
                unreported = step, totals
            if unreported and (one_by_one or saves):
                report(*unreported)
                unreported = None
            val_accuracy = None
            if ends_epoch and val is not None:
                loss, val_accuracy = evaluate(
                    train_state, val, batch_size=config.batch_size
                ).means()
                progress.result(
                    f"Accuracy of the model on the {len(val.labels)} validation images:"
                    f" {100 * val_accuracy:.2f} %"
                )
                writer.write(step, "val", epoch=epoch + 1, loss=loss, accuracy=val_accuracy)
            if saves:
                save(val_accuracy)
            if stops:
                progress.note(
                    f"Stopped after step {step} of {total_steps}; continue with:"
                    f" python -m jaxcifar.train --workdir {workdir} --resume"
                )
                raise KeyboardInterrupt(signals[0])

        loss, accuracy = evaluate(train_state, test, batch_size=config.batch_size).means()
        progress.close()
        progress.result(f"Accuracy of the model on the test images: {100 * accuracy:.2f} %")
        writer.write(total_steps, "test", loss=loss, accuracy=accuracy)
        return History(workdir, writer.records, accuracy, train_state)


def _dispatches_each_step() -> bool:
    """On a CPU, where XLA's own convolution is very slow inside a loop, and dispatch is cheap."""
    import jax

    return jax.default_backend() == "cpu"


def _steps_to_pause(config: TrainConfig, step: int, steps_per_epoch: int) -> int:
    """Steps from ``step`` to the next report, checkpoint or end of the epoch."""
    done = step % steps_per_epoch
    pauses = [steps_per_epoch - done, config.log_every - done % config.log_every]
    if config.checkpoint_every:
        pauses.append(config.checkpoint_every - step % config.checkpoint_every)
    return min(pauses)


def _prepare_workdir(config: TrainConfig) -> Path:
    """The run's folder, made if need be; refuses to mix two runs."""
    from jaxcifar import checkpoint

    name = f"{config.dataset}-{config.model}-{datetime.now():%Y%m%d-%H%M%S}"
    workdir = Path(config.workdir or Path("runs") / name)
    if config.resume:
        saved = TrainConfig.from_json(workdir / CONFIG_FILE)
        for field in dataclasses.fields(TrainConfig):
            old, new = getattr(saved, field.name), getattr(config, field.name)
            if new not in (old, None) and not field.metadata["may_change"]:
                raise UserError(
                    f"{flag(field.name)} {new} is not what {workdir} was started with ({old}):"
                    " leave it out, or start a run in another --workdir"
                )
    elif checkpoint.has_checkpoint(workdir):
        raise UserError(
            f"{workdir} holds a run already: continue it with --resume, or choose another --workdir"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    return workdir


def _initial_weights(config: TrainConfig) -> "Weights | None":
    """What --init-from holds; a resumed run has its own."""
    if config.init_from is None or config.resume:
        return None
    from jaxcifar import weights

    initial = weights.load(config.init_from, model=config.model, ema=config.ema)
    initial.tell(config.init_from)
    return initial


def _learning_rate(config: TrainConfig, workdir: Path, initial: "Weights | None") -> float:
    """The one asked for, else that of the run that goes on, or the torch optimizer's, or 0.001."""
    if config.learning_rate is None and config.resume:
        config = TrainConfig.from_json(workdir / CONFIG_FILE)
    if config.learning_rate is not None:
        return config.learning_rate
    if initial is None or initial.learning_rate is None:
        return 1e-3
    if initial.learning_rate == 0:
        raise UserError(f"{config.init_from} stopped at a learning rate of 0: give --learning-rate")
    return initial.learning_rate


def _write_config(workdir: Path, config: TrainConfig) -> None:
    """Replaces the file whole, so that a killed process cannot leave half of one."""
    new = workdir / f"{CONFIG_FILE}.new"
    new.write_text(config.to_json())
    new.replace(workdir / CONFIG_FILE)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; a second one kills as usual."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return

    def handle(signum: int, frame: object) -> None:
        received.append(signum)
        signal.signal(signum, old[signum])

    old = {int(s): signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    flags = cli.parse(
        TrainConfig,
        argv,
        prog="python -m jaxcifar.train",
        description="Trains a network on CIFAR-10 and prints its accuracy on the test images.",
    )
    config = TrainConfig(**flags)
    if config.resume:
        saved = TrainConfig.from_json(Path(config.workdir or "") / CONFIG_FILE)
        config = dataclasses.replace(saved, **flags)
    history = train_and_evaluate(config)
    print(f"Checkpoints and logs are in {history.workdir}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main, prog="jaxcifar.train")
