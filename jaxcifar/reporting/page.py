"""The page about one or several runs, and the test outputs that it shows."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from scipy import special

from jaxcifar.config.options import command_line
from jaxcifar.core.steps import Examples
from jaxcifar.errors import UserError, regular_file
from jaxcifar.files import atomic
from jaxcifar.files.run import RunDirectory
from jaxcifar.reporting import figures
from jaxcifar.reporting.scores import confusions, score

OUTPUTS_FILE = "test.npz"
OUTPUTS_BYTES = 2**32  # at most, when it is unpacked


class TestOutputs(NamedTuple):
    """The outputs of a run's checkpoint on the test images."""

    step: int
    class_names: Sequence[str]
    logits: np.ndarray  # float32 (N, classes)
    labels: np.ndarray  # int32 (N,)
    mistaken: np.ndarray  # int (M,), the 25 most confident mistakes, the worst first
    images: np.ndarray  # uint8 (M, 32, 32, 3), of these


def save_outputs(
    run: RunDirectory, step: int, names: Sequence[str], logits: np.ndarray, examples: Examples
) -> TestOutputs:
    """Save test outputs with the run, so that a report can be made without the data."""
    images, labels = examples
    confidence = special.softmax(logits, axis=1).max(axis=1)
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    mistaken = wrong[np.argsort(-confidence[wrong], kind="stable")][:25]
    outputs = TestOutputs(step, names, logits, labels, mistaken, images[mistaken])
    run.report_dir.mkdir(exist_ok=True)
    with atomic.replacing(run.report_dir / OUTPUTS_FILE) as path:
        np.savez_compressed(path, **outputs._asdict())
    return outputs


def load_outputs(run: RunDirectory) -> TestOutputs | None:
    """Return the saved test outputs of a run, or None if they are missing or corrupt."""
    path = run.report_dir / OUTPUTS_FILE
    try:
        with regular_file(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if sum(entry.file_size for entry in arrays.zip.filelist) > OUTPUTS_BYTES:
                return None
            step, names, logits, labels, wrong, images = (arrays[n] for n in TestOutputs._fields)
        _ = score(logits, labels, names), logits[wrong]  # raises if an array does not fit
        outputs = TestOutputs(int(step), names.tolist(), logits, labels, wrong, images)
        kinds = names.dtype.kind, wrong.ndim, images.dtype, images.shape
        return outputs if kinds == ("U", 1, np.uint8, (len(wrong), 32, 32, 3)) else None
    except Exception:  # whatever a file raises that was cut short or is of another version
        return None


def write_report(
    runs: Sequence[RunDirectory], outputs: Sequence[TestOutputs], output: str | Path | None = None
) -> Path:
    """Write a page and its figures to a directory; return the path of the page."""
    paths = [run.path.resolve() for run in runs]
    common = os.path.commonpath([path.parent for path in paths])
    names = [str(path.relative_to(common)) for path in paths]
    if len(set(names)) < len(names):
        raise UserError("a run was given twice; pass each directory once")
    output = Path(output or (runs[0].report_dir if len(runs) == 1 else "report"))
    output.mkdir(parents=True, exist_ok=True)
    records = {name: run.read_metrics() for name, run in zip(names, runs, strict=True)}
    curves = figures.save(output / "curves.png", figures.curves, records)
    sections = []
    for number, (name, run, test) in enumerate(zip(names, runs, outputs, strict=True), start=1):
        suffix = ".png" if len(runs) == 1 else f"-{number}.png"
        step, classes, logits, labels, wrong, images = test
        config, scores = run.read_config(), score(logits, labels, classes)
        shown = images, labels[wrong], logits[wrong], classes
        path, worst = output / f"confusion{suffix}", output / f"mistakes{suffix}"
        sections.append(
            {
                "name": name,
                "step": step,
                "scores": scores,
                "confusions": confusions(scores),
                "confusion": figures.save(path, figures.confusion, scores.confusion, classes),
                "mistakes": figures.save(worst, figures.mistakes, *shown),
                "command": command_line(config.recipe(), "jaxcifar", "train"),
                "config": config.to_dict(),
                "environment": run.read_environment(),
            }
        )
    source = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    template = jinja2.Template(source, autoescape=True, undefined=jinja2.StrictUndefined)
    atomic.write_text(output / "index.html", template.render(runs=sections, curves=curves))
    return output / "index.html"
