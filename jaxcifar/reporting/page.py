"""The page about one or several runs, and the test outputs that it shows."""

import dataclasses
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from etils import epy

from jaxcifar.config.options import command_line
from jaxcifar.core.steps import Examples
from jaxcifar.errors import UserError
from jaxcifar.files import atomic
from jaxcifar.files.run import RunDirectory
from jaxcifar.reporting import figures
from jaxcifar.reporting.scores import Scores, score

with epy.lazy_imports():
    import jinja2
    from scipy import special

OUTPUTS_FILE = "test.npz"
MAX_MISTAKES = 25


@dataclasses.dataclass(frozen=True)
class TestOutputs:
    """The outputs of a run's checkpoint on the test images."""

    step: int
    class_names: tuple[str, ...]
    logits: np.ndarray  # float32 (N, classes)
    labels: np.ndarray  # int32 (N,)
    mistaken: np.ndarray  # int (M,), the most confident mistakes, the worst first
    images: np.ndarray  # uint8 (M, 32, 32, 3), of these

    @cached_property
    def scores(self) -> Scores:
        """The scores of the logits; raises ``UserError`` if they are not finite."""
        return score(self.logits, self.labels, self.class_names)

    @property
    def mistakes(self) -> tuple[Examples, np.ndarray]:
        """The mistaken examples and their logits."""
        return Examples(self.images, self.labels[self.mistaken]), self.logits[self.mistaken]


def collect(
    step: int, class_names: Sequence[str], logits: np.ndarray, examples: Examples
) -> TestOutputs:
    """Return test outputs; ``examples`` are on the host."""
    images, labels = examples
    confidence = special.softmax(logits, axis=1).max(axis=1)
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    mistaken = wrong[np.argsort(-confidence[wrong], kind="stable")][:MAX_MISTAKES]
    return TestOutputs(step, tuple(class_names), logits, labels, mistaken, images[mistaken])


def save_outputs(run: RunDirectory, outputs: TestOutputs) -> None:
    """Save test outputs with the run, so that a report can be made without the data."""
    run.report_dir.mkdir(exist_ok=True)
    with atomic.replacing(run.report_dir / OUTPUTS_FILE) as path:
        np.savez_compressed(path, **dataclasses.asdict(outputs))


def load_outputs(run: RunDirectory) -> TestOutputs | None:
    """Return the saved test outputs of a run, or None if they are missing or corrupt."""
    try:
        path = run.report_dir / OUTPUTS_FILE
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            step, names, *rest = [arrays[f.name] for f in dataclasses.fields(TestOutputs)]
        outputs = TestOutputs(int(step), tuple(map(str, names)), *rest)
        _ = outputs.scores, outputs.mistakes  # raises unless the arrays fit together
        return outputs
    except Exception:  # whatever a file raises that was cut short or is of another version
        return None


def write_report(
    runs: Sequence[RunDirectory], outputs: Sequence[TestOutputs], output: Path | None = None
) -> Path:
    """Write a page and its figures to a directory; return the path of the page."""
    output = output or (runs[0].report_dir if len(runs) == 1 else Path("report"))
    names = _names([run.path.resolve() for run in runs])
    output.mkdir(parents=True, exist_ok=True)
    records = {name: run.read_metrics() for name, run in zip(names, runs, strict=True)}
    curves = figures.curves(records, output / "curves.png")
    sections = []
    for number, (name, run, values) in enumerate(zip(names, runs, outputs, strict=True), start=1):
        suffix = ".png" if len(runs) == 1 else f"-{number}.png"
        config, environment = run.read_config(), run.read_environment()
        section = {
            "name": name,
            "outputs": values,
            "confusion": figures.confusion(
                values.scores.confusion, values.class_names, output / f"confusion{suffix}"
            ),
            "mistakes": figures.mistakes(
                *values.mistakes, values.class_names, output / f"mistakes{suffix}"
            ),
            "command": command_line(dataclasses.replace(config, workdir=None, resume=False)),
            "config": config.to_dict(),
            "environment": {**environment.pop("versions", {}), **environment},
        }
        sections.append(section)
    source = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    template = jinja2.Template(source, autoescape=True, undefined=jinja2.StrictUndefined)
    atomic.write_text(output / "index.html", template.render(runs=sections, curves=curves))
    return output / "index.html"


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the directories' names, or as much of their paths as tells them apart."""
    if len(set(paths)) < len(paths):
        raise UserError("a run was given twice; pass each directory once")
    if len({path.name for path in paths}) == len(paths):
        return [path.name for path in paths]
    common = os.path.commonpath(paths)
    return [str(path.relative_to(common)) for path in paths]
