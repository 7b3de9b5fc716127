"""Figures and a page about runs: ``jaxcifar report``, or ``make_report(paths)``."""

if __name__ == "__main__":  # python -m jaxcifar.report
    from jaxcifar import cli

    cli.run("report")

import logging
from collections.abc import Sequence
from pathlib import Path

from jaxcifar.config.commands import ReportConfig
from jaxcifar.errors import UserError, one_line
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
    runs, outputs = [RunDirectory(Path(path)) for path in paths], []
    for run in runs:
        run.check_links()
        step, test = run.last_step(), page.load_outputs(run)
        if step is None:
            raise UserError(f"{run.path} has no checkpoint; train first or pass another path")
        if test is None or test.step != step:
            log.info("%s: evaluating the checkpoint of step %d on the test images", run.path, step)
            new = evaluate(run.path, data_dir=data_dir or run.read_config().data_dir, progress=True)
            test = page.save_outputs(run, step, new.class_names, new.logits, new.examples)
        outputs.append(test)
    return page.write_report(runs, outputs, output)


def main(config: ReportConfig) -> None:
    """Run the command."""
    process.start(use_compile_cache=config.compile_cache)
    path = make_report(config.workdirs, config.output, data_dir=config.data_dir)
    print(one_line(str(path)))
