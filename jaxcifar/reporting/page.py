"""The page about one or several runs."""

import os
from collections.abc import Sequence
from pathlib import Path

import jinja2

from jaxcifar.config.options import command_line
from jaxcifar.errors import UserError
from jaxcifar.files import atomic
from jaxcifar.files.run import RunDirectory
from jaxcifar.reporting import figures
from jaxcifar.reporting.scores import Evaluation, confusions


def write_report(
    runs: Sequence[tuple[RunDirectory, int, Evaluation]], output: str | Path | None = None
) -> Path:
    """Write a page about runs, each with a step and its evaluation, and return the page's path."""
    paths = [run.path.resolve() for run, _, _ in runs]
    common = os.path.commonpath([path.parent for path in paths])
    named = {str(p.relative_to(common)): run for p, run in zip(paths, runs, strict=True)}
    if len(named) < len(runs):
        raise UserError("a run was given twice; pass each directory once")
    output = Path(output or (runs[0][0].path / "report" if len(runs) == 1 else "report"))
    output.mkdir(parents=True, exist_ok=True)
    records = {name: run.read_metrics() for name, (run, _, _) in named.items()}
    curves = figures.save(output / "curves.png", figures.curves, records)
    sections = []
    for number, (name, (run, step, test)) in enumerate(named.items(), start=1):
        suffix = ".png" if len(runs) == 1 else f"-{number}.png"
        config, scores, classes = run.read_config(), test.scores, test.class_names
        path, worst = output / f"confusion{suffix}", output / f"mistakes{suffix}"
        section = {
            "name": name,
            "step": step,
            "scores": scores,
            "confusions": confusions(scores),
            "confusion": figures.save(path, figures.confusion, scores.confusion, classes),
            "mistakes": figures.save(worst, figures.mistakes, *test.examples, test.logits, classes),
            "command": command_line(config.recipe(), "jaxcifar", "train"),
            "config": config.to_dict(),
            "environment": run.read_environment(),
        }
        sections.append(section)
    source = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    template = jinja2.Template(source, autoescape=True, undefined=jinja2.StrictUndefined)
    atomic.write_text(output / "index.html", template.render(runs=sections, curves=curves))
    return output / "index.html"
