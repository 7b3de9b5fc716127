"""Train a network: ``jaxcifar train``, or ``train_and_evaluate(config)``."""

if __name__ == "__main__":  # python -m jaxcifar.train
    from jaxcifar import cli

    cli.main("train")

import logging
import shlex
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxcifar.config.commands import EvaluateConfig
from jaxcifar.config.train import TrainConfig
from jaxcifar.core.state import TrainState, short_repr
from jaxcifar.errors import UserError, log
from jaxcifar.evaluate import test_logits
from jaxcifar.files.checkpoints import Checkpoints
from jaxcifar.files.run import MetricWriter, RunDirectory
from jaxcifar.reporting import page
from jaxcifar.reporting.progress import Progress
from jaxcifar.reporting.scores import Evaluation, score
from jaxcifar.runtime import loop, process, setup


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
    process.join(config.coordinator, config.num_processes, config.process_id)
    process.start(use_compile_cache=config.compile_cache)
    with ExitStack() as stack, process.watching():
        directory = RunDirectory.for_run(config)
        silent = jax.process_index() > 0  # one process prints and writes for all
        if silent:
            logging.getLogger("jaxcifar").setLevel(logging.ERROR)
        else:
            stack.enter_context(directory.locked())
        run, state, totals = setup.prepare(config, directory)
        config, start = run.config, int(state.step)
        if start > run.total_steps:
            limit = f"beyond the {run.total_steps} steps of --epochs and --limit-steps"
            raise UserError(f"{directory.path} stands at step {start}, {limit}: ask for more")
        records = directory.read_metrics()
        tested = [r["accuracy"] for r in records if (r["split"], r["step"]) == ("test", start)]
        if tested and start == run.total_steps:
            log.info("%s is finished; continue with more --epochs or --limit-steps", directory.path)
            if not silent:
                with suppress(OSError):
                    print(loop.ACCURACY.format("test", 100 * tested[0]))
            return History(directory.path, records, tested[0], state)
        checkpoints = Checkpoints(directory.checkpoints_dir, run.metadata, keep=config.keep)
        stack.enter_context(checkpoints)
        if not silent:
            directory.write_config(config, process.describe())
        metrics = stack.enter_context(closing(MetricWriter(directory, start, silent=silent)))
        images = config.batch_size * run.total_steps
        with closing(Progress(images, config.batch_size * start, silent=silent)) as progress:
            state = loop.train(run, state, totals, loop.Outputs(progress, metrics, checkpoints))
        options = {"batch_size": config.batch_size, "mesh": run.mesh}
        logits = test_logits(state, run.test.images, silent, **options)
        checkpoints.finish()
        names = run.metadata["class_names"]
        scores = score(logits, run.test.labels, names)
        values = {"images": scores.images, "loss": scores.loss, "accuracy": scores.accuracy}
        metrics.write(run.total_steps, "test", **values)
        progress.result(loop.ACCURACY.format("test", 100 * scores.accuracy))
        if config.report and not silent:
            try:
                test = Evaluation(config.model, config.dataset, run.test, names, logits, scores)
                page.write_report([(directory, run.total_steps, test)])
            except Exception as error:  # of matplotlib or the disk
                advice = f"try jaxcifar report {shlex.quote(str(directory.path))}"
                log.warning("the report could not be written (%s): %s", error, advice)
        if best := directory.best(metrics.records):
            command = run.command("evaluate", EvaluateConfig, checkpoint=f"{directory.path}:best")
            message = "Best on the validation images after step %d: %.2f %%; evaluate it with: %s"
            log.info(message, best["step"], 100 * best["accuracy"], command)
        return History(directory.path, metrics.records, scores.accuracy, state)


def main(config: TrainConfig) -> None:
    """Run the command."""
    log.info("Checkpoints, logs and report are in %s", train_and_evaluate(config).workdir)
