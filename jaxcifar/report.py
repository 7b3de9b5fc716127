"""Pictures and a page about runs: ``python -m jaxcifar.report``, or ``make_report``."""

import base64
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxcifar import cli
from jaxcifar.config import REQUIRED, option
from jaxcifar.errors import UserError
from jaxcifar.files import metrics as logs
from jaxcifar.files import run as workdir
from jaxcifar.runtime import process as runtime

if TYPE_CHECKING:
    import numpy as np

    from jaxcifar.data import Examples
    from jaxcifar.reporting.figures import Mistake
    from jaxcifar.reporting.scores import Scores

FOLDER = "report"
OUTPUTS_FILE = "test.npz"
PAGE = "index.html"
MISTAKES = 25


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What the command reports on, and where to."""

    workdirs: tuple[str, ...] = option(
        REQUIRED, "folders of runs; several are drawn over each other", positional=True
    )
    output: str | None = option(
        None, f"where the report goes (default: WORKDIR/{FOLDER}; of several runs: {FOLDER})"
    )
    data_dir: str | None = option(
        None, "where the data is, should the test images have to be looked at again"
    )
    compile_cache: bool = option(
        True, "do not keep compiled programs in the user's cache folder for the next run"
    )


class TestOutputs(NamedTuple):
    """What a network said of the test images.

    Attributes:
      step: of the checkpoint.
      class_names: in the order of the logits.
      logits: float32 ``(N, classes)``.
      labels: int32 ``(N,)``.
      mistaken: int ``(M,)``: the most confident mistakes, the worst first.
      images: uint8 ``(M, 32, 32, 3)``: of those.
    """

    step: int
    class_names: tuple[str, ...]
    logits: "np.ndarray"
    labels: "np.ndarray"
    mistaken: "np.ndarray"
    images: "np.ndarray"


class RunReport(NamedTuple):
    """A run as the page shows it; the pictures are ``data:`` addresses."""

    name: str
    step: int
    scores: "Scores"
    command: str
    config: dict[str, Any]
    environment: dict[str, Any]
    confusion: str
    mistakes: str


def collect(
    step: int, class_names: Sequence[str], logits: "np.ndarray", examples: "Examples"
) -> TestOutputs:
    """Picks the mistakes out of ``evaluate.predict``'s logits of ``examples``, on the host."""
    import numpy as np

    confidence = _confidence(logits)
    wrong = np.flatnonzero(logits.argmax(axis=1) != examples.labels)
    mistaken = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    images = np.asarray(examples.images[mistaken])
    return TestOutputs(step, tuple(class_names), logits, examples.labels, mistaken, images)


def save_outputs(folder: Path, outputs: TestOutputs) -> None:
    """Keeps them in ``folder/report``, so that a report can be made again without the data."""
    import numpy as np

    (folder / FOLDER).mkdir(exist_ok=True)
    path = folder / FOLDER / OUTPUTS_FILE
    new = path.with_name(f"new-{path.name}")
    np.savez_compressed(new, **{**outputs._asdict(), "class_names": np.array(outputs.class_names)})
    new.replace(path)


def make_report(
    workdirs: Sequence[Path], output: Path | None = None, *, data_dir: str | None = None
) -> Path:
    """Writes ``index.html``, ``curves.png``, and each run's ``confusion.png``, ``mistakes.png``.

    Args:
      workdirs: folders of runs. One whose test outputs are missing, or older than its last
        checkpoint, is evaluated anew.
      output: a folder; None means ``WORKDIR/report``, for several runs ``report``.
      data_dir: where the data is, if a run has to be evaluated.

    Returns:
      The page.

    Raises:
      UserError: a folder is of no run, or holds no checkpoint.
    """
    from jaxcifar.reporting import figures

    names = _names(workdirs)
    if output is None:
        output = workdirs[0] / FOLDER if len(workdirs) == 1 else Path(FOLDER)
    records = {
        name: logs.read_metrics(folder / logs.METRICS_FILE)
        for name, folder in zip(names, workdirs, strict=True)
    }
    outputs = [_outputs(folder, data_dir) for folder in workdirs]
    output.mkdir(parents=True, exist_ok=True)
    figures.curves(records, output / "curves.png")
    runs = []
    for index, (name, folder) in enumerate(zip(names, workdirs, strict=True), start=1):
        ending = "" if len(workdirs) == 1 else f"-{index}"
        pictures = [output / f"{what}{ending}.png" for what in ("confusion", "mistakes")]
        runs.append(_run(name, folder, outputs[index - 1], *pictures))
    workdir.replace_text(output / PAGE, _page(runs, output / "curves.png"))
    return output / PAGE


def _run(
    name: str, folder: Path, outputs: TestOutputs, confusion: Path, mistakes: Path
) -> RunReport:
    from jaxcifar.reporting import figures
    from jaxcifar.reporting.scores import score

    config = workdir.read_config(folder)
    scores = score(outputs.logits, outputs.labels, outputs.class_names)
    figures.confusion(scores.confusion, outputs.class_names, confusion)
    figures.mistakes(_mistakes(outputs), mistakes)
    again = dataclasses.replace(config, workdir=None, resume=False)
    environment = workdir.read_environment(folder)
    flat = {**environment.pop("versions", {}), **environment}
    return RunReport(
        name=name,
        step=outputs.step,
        scores=scores,
        command=cli.command_line(again, "python -m jaxcifar.train"),
        config=json.loads(config.to_json()),
        environment=flat,
        confusion=_embedded(confusion),
        mistakes=_embedded(mistakes),
    )


def _page(runs: Sequence[RunReport], curves: Path) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxcifar", "reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    first = runs[0]
    several = len(runs) > 1
    return environment.get_template("report.html").render(
        title=f"{len(runs)} runs" if several else first.name,
        subtitle=", ".join(run.name for run in runs)
        if several
        else f"{first.config['model']} on {first.config['dataset']}, after {first.step} steps",
        runs=runs,
        heading="h3" if several else "h2",
        curves=_embedded(curves),
        percent=lambda share: "" if share is None else f"{100 * share:.2f} %",
        interval=lambda scores: (
            " to ".join(f"{100 * x:.2f}" for x in scores.accuracy_interval) + " %"
        ),
    )


def _embedded(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()


def _names(workdirs: Sequence[Path]) -> list[str]:
    """The folders' names, or as much of their paths as tells them apart."""
    resolved = [folder.resolve() for folder in workdirs]
    if len(set(resolved)) < len(resolved):
        raise UserError("a run is given twice: give each folder once")
    if len({path.name for path in resolved}) == len(resolved):
        return [path.name for path in resolved]
    common = os.path.commonpath(resolved)
    return [str(path.relative_to(common)) for path in resolved]


def _outputs(folder: Path, data_dir: str | None) -> TestOutputs:
    """The run's test outputs at its last checkpoint, from the file or computed."""
    config = workdir.read_config(folder)
    step = workdir.last_step(folder)
    if step is None:
        raise UserError(f"{folder} has no checkpoint yet: let it train until it has one")
    saved = _read_outputs(folder / FOLDER / OUTPUTS_FILE)
    if saved is not None and saved.step == step:
        return saved
    from jaxcifar.evaluate import score_checkpoint

    runtime.note(f"{folder}: looking at the test images with the weights of step {step}")
    found = score_checkpoint(str(folder), data_dir=data_dir or config.data_dir)
    outputs = collect(step, found.class_names, found.logits, found.examples)
    save_outputs(folder, outputs)
    return outputs


def _read_outputs(path: Path) -> TestOutputs | None:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            values = {name: file[name] for name in TestOutputs._fields}
        names = tuple(str(name) for name in values.pop("class_names"))
        outputs = TestOutputs(int(values.pop("step")), names, **values)
        _mistakes(outputs)
        whole = outputs.logits.shape == (len(outputs.labels), len(names))
    except Exception:  # missing, cut short, or of another version: it can be computed anew
        return None
    return outputs if whole else None


def _mistakes(outputs: TestOutputs) -> "list[Mistake]":
    from jaxcifar.reporting.figures import Mistake

    confidence = _confidence(outputs.logits)
    predicted = outputs.logits.argmax(axis=1)
    return [
        Mistake(
            image,
            outputs.class_names[outputs.labels[index]],
            outputs.class_names[predicted[index]],
            float(confidence[index]),
        )
        for index, image in zip(outputs.mistaken, outputs.images, strict=True)
    ]


def _confidence(logits: "np.ndarray") -> "np.ndarray":
    """The probability of the predicted class, ``(N,)``."""
    from scipy.special import softmax

    return softmax(logits, axis=1).max(axis=1)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    flags: Mapping[str, Any] = cli.parse(
        ReportConfig,
        argv,
        prog="python -m jaxcifar.report",
        description="Draws curves, confusions and mistakes of runs, and a page that shows them.",
    )
    config = ReportConfig(**flags)
    runtime.dispatch_in_turn()
    from jaxcifar.runtime import compile_cache

    if config.compile_cache:
        compile_cache.enable()
    folders = [Path(folder) for folder in config.workdirs]
    output = Path(config.output) if config.output else None
    print(make_report(folders, output, data_dir=config.data_dir))


if __name__ == "__main__":
    cli.run(main, prog="jaxcifar.report")
