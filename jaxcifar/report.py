"""Figures and a page about runs: ``jaxcifar report``, or ``make_report(config)``."""

if __name__ == "__main__":  # python -m jaxcifar.report
    from jaxcifar import cli

    cli.main("report")

from pathlib import Path

from jaxcifar.config.commands import EvaluateConfig, ReportConfig
from jaxcifar.config.train import is_own
from jaxcifar.errors import UserError, log, one_line
from jaxcifar.evaluate import evaluate
from jaxcifar.files.run import RunDirectory
from jaxcifar.reporting import page
from jaxcifar.runtime import process


def make_report(config: ReportConfig) -> Path:
    """Evaluate runs, write a page about them, by default into the run's, and return its path."""
    runs = []
    for run in map(RunDirectory, config.workdirs):
        run.check_links()
        if (step := run.last_step()) is None:
            raise UserError(f"{run.path} has no checkpoint; train first or pass another path")
        log.info("%s: evaluating the checkpoint of step %d on the test images", run.path, step)
        saved = run.read_config()
        options = EvaluateConfig(
            checkpoint=str(run.checkpoints_dir / str(step)),
            model=config.model if is_own(saved.model) else None,
            data_dir=config.data_dir or saved.data_dir,
        )
        runs.append((run, step, evaluate(options)))
    return page.write_report(runs, config.output)


def main(config: ReportConfig) -> None:
    """Run the command."""
    process.start(use_compile_cache=config.compile_cache)
    print(one_line(str(make_report(config))))
