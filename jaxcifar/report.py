"""Figures and a page about runs: ``jaxcifar report``, or ``make_report(paths)``."""

if __name__ == "__main__":  # python -m jaxcifar.report
    from jaxcifar import cli

    cli.run("report")

import logging
from collections.abc import Sequence
from pathlib import Path

from jaxcifar.config.commands import ReportConfig
from jaxcifar.errors import UserError
from jaxcifar.evaluate import evaluate
from jaxcifar.files.run import RunDirectory
from jaxcifar.reporting import page
from jaxcifar.runtime import process

log = logging.getLogger(__name__)


def make_report(
    paths: Sequence[str | Path], output: str | Path | None = None, *, data_dir: str | None = None
) -> Path:
    """Write a page about run directories, by default into the run's, and return its path.

    A run is evaluated again if its test outputs are missing or older than its last checkpoint.
    """
    runs = [RunDirectory(Path(path)) for path in paths]
    for run in runs:
        run.check_links()
    return page.write_report(runs, [_test_outputs(run, data_dir) for run in runs], output)


def _test_outputs(run: RunDirectory, data_dir: str | None) -> page.TestOutputs:
    config, step = run.read_config(), run.last_step()
    if step is None:
        raise UserError(f"{run.path} has no checkpoint; train first or pass another path")
    saved = page.load_outputs(run)
    if saved and saved.step == step:
        return saved
    log.info("%s: evaluating the checkpoint of step %d on the test images", run.path, step)
    result = evaluate(str(run.path), data_dir=data_dir or config.data_dir, progress=True)
    return page.save_outputs(run, step, result.class_names, result.logits, result.examples)


def main(config: ReportConfig) -> None:
    """Run the command."""
    process.start(use_compile_cache=config.compile_cache)
    print(make_report(config.workdirs, config.output, data_dir=config.data_dir))
