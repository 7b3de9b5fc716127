"""Train a network: ``jaxcifar train``, or ``train_and_evaluate(config)``."""

if __name__ == "__main__":  # python -m jaxcifar.train
    from jaxcifar import cli

    cli.run("train")

import dataclasses
import logging
import shlex
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcifar.config.commands import EvaluateConfig
from jaxcifar.config.train import TrainConfig
from jaxcifar.core.state import TrainState, short_repr
from jaxcifar.errors import UserError
from jaxcifar.evaluate import test_logits
from jaxcifar.files import weights
from jaxcifar.files.run import RunDirectory
from jaxcifar.reporting import page
from jaxcifar.reporting.progress import Progress
from jaxcifar.reporting.scores import score
from jaxcifar.runtime import distributed, environment, loop, process, setup

log = logging.getLogger(__name__)
ACCURACY = "Accuracy of the model on the test images: {:.2f} %"


@short_repr
class History(NamedTuple):
    """What a run leaves."""

    workdir: Path
    records: list[dict[str, Any]]  # of metrics.jsonl
    test_accuracy: float  # of the final state, from 0 to 1
    state: TrainState


def train_and_evaluate(config: TrainConfig) -> History:
    """Train as configured and evaluate on the test images.

    SIGINT and SIGTERM save a checkpoint and raise ``KeyboardInterrupt``. Raises ``UserError`` if
    the options do not fit the data, the devices or the run directory, or the loss is not finite.
    """
    address = config.coordinator, config.num_processes, config.process_id
    join = partial(distributed.join, *address)
    process.start(use_compile_cache=config.compile_cache, join=join)
    with ExitStack() as stack, distributed.watching():
        silent, initial = not distributed.is_first_process(), None
        directory = RunDirectory.for_run(config)
        if not silent:
            directory = stack.enter_context(directory.locked())
        resumes = directory.last_step() is not None
        if config.resume and not resumes:
            log.info("%s has no checkpoint yet: the run starts from the beginning", directory.path)
        if config.init_from is not None and not resumes:
            initial = weights.load(
                config.init_from, model=config.model, ema=config.ema, optimizer=True
            )
        saved = directory.read_metadata() if resumes else {}
        config.check_resumes(saved, directory.path)
        rate = setup.learning_rate(config, saved, initial)
        config = dataclasses.replace(config, learning_rate=rate)
        run, state, totals = setup.prepare(config, directory, initial)
        del initial
        setup.check_same_data(run, saved)
        checkpoints = stack.enter_context(directory.open_checkpoints(keep=config.keep))
        if resumes:
            state, totals = checkpoints.restore(state, totals)
        start = int(state.step)
        if start > run.total_steps:
            limit = f"beyond the {run.total_steps} steps of --epochs and --limit-steps"
            raise UserError(f"{directory.path} stands at step {start}, {limit}: ask for more")
        records = directory.read_metrics()
        tested = [r["accuracy"] for r in records if (r["split"], r["step"]) == ("test", start)]
        if tested and start == run.total_steps:
            advice = "continue it with more --epochs or --limit-steps"
            log.info("%s is finished after %d steps; %s", directory.path, start, advice)
            if not silent:
                print(ACCURACY.format(100 * tested[0]))
            return History(directory.path, records, tested[0], state)
        if not silent:
            directory.write_config(config, environment.describe())
        metrics = stack.enter_context(closing(directory.open_metrics(start, silent=silent)))
        images = config.batch_size * run.total_steps
        progress = Progress(images, config.batch_size * start, silent=silent)
        stack.callback(progress.close)
        state = loop.train(run, state, totals, loop.Outputs(progress, metrics, checkpoints))
        progress.close()
        logits = test_logits(
            state, run.test.images, batch_size=config.batch_size, mesh=run.mesh, silent=silent
        )
        checkpoints.finish()
        scores = score(logits, run.test.labels, run.metadata["class_names"])
        values = {"images": scores.images, "loss": scores.loss, "accuracy": scores.accuracy}
        metrics.write(run.total_steps, "test", **values)
        progress.result(ACCURACY.format(100 * scores.accuracy))
        if config.report and not silent:
            _write_report(run, logits)
        if best := directory.best():
            path = f"{directory.path}:best"
            command = run.command("evaluate", EvaluateConfig, checkpoint=path)
            message = "Best on the validation images after step %d: %.2f %%; evaluate it with: %s"
            log.info(message, best["step"], 100 * best["accuracy"], command)
        return History(directory.path, metrics.records, scores.accuracy, state)


def _write_report(run: setup.Run, logits: np.ndarray) -> None:
    """Write the report; if that fails, the run's results stay."""
    try:
        names = run.metadata["class_names"]
        outputs = page.save_outputs(run.directory, run.total_steps, names, logits, run.test)
        page.write_report([run.directory], [outputs])
    except Exception as error:  # of matplotlib under the user's settings, or the disk
        path = shlex.quote(str(run.directory.path))
        log.warning("the report could not be written (%s): try jaxcifar report %s", error, path)


def main(config: TrainConfig) -> None:
    """Run the command."""
    history = train_and_evaluate(config)
    log.info("Checkpoints, logs and report are in %s", history.workdir)
