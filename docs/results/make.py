"""Make the table and the pictures of ``docs/results.md`` from the runs in this directory.

``python docs/results/make.py RUN...`` first copies the records of finished runs here.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from scipy import stats

from jaxcifar.config.options import command_line
from jaxcifar.files.run import METRICS_FILE, RunDirectory
from jaxcifar.reporting import figures

HERE = Path(__file__).parent
PAGE = HERE.parent / "results.md"
BEGIN, END = "<!-- runs: make results writes this -->", "<!-- end of runs -->"


def accuracy(record: dict[str, Any] | None) -> str:
    """Return a cell with the accuracy and its 95 % interval (Wilson, 1927)."""
    if record is None:
        return ""
    count = record["images"]
    right = round(record["accuracy"] * count)
    low, high = stats.binomtest(right, count).proportion_ci(method="wilson")
    return f"{100 * right / count:.2f} % ({100 * low:.2f} to {100 * high:.2f})"


def hours(records: list[dict[str, Any]], batch_size: int) -> str:
    """Return the time spent on training steps, by the pace of each interval."""
    seconds, last = 0.0, 0
    for record in records:
        if record["split"] == "train":
            seconds += (record["step"] - last) * batch_size / record["images_per_second"]
            last = record["step"]
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02} min"


def row(run: RunDirectory) -> str:
    """Return a run's row of the table."""
    records, config, machine = run.read_metrics(), run.read_config(), run.read_environment()
    last = {record["split"]: record for record in records}
    cells = [run.path.name, config.model, str(config.seed), str(last["val"]["epoch"])]
    cells += [accuracy(last["val"]), accuracy(last.get("test"))]
    cells += [hours(records, config.batch_size), machine["processor"], machine["commit"]]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Copy what is asked for, then write the table and the pictures."""
    for source in map(Path, sys.argv[1:]):
        folder = HERE / source.name
        folder.mkdir(exist_ok=True)
        shutil.copyfile(source / METRICS_FILE, folder / METRICS_FILE)
        run = RunDirectory(source)
        RunDirectory(folder).write_config(run.read_config().recipe(), run.read_environment())
    runs = [RunDirectory(path.parent) for path in sorted(HERE.glob(f"*/{METRICS_FILE}"))]
    heads = ["run", "network", "seed", "epochs", "5,000 held-out training images"]
    heads += ["first 1,000 test images", "training time", "machine", "commit"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *map(row, runs)]
    lines += ["", "The commands:", "", "```sh"]
    lines += [command_line(run.read_config(), "jaxcifar", "train") for run in runs] + ["```"]
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    text = "\n".join([BEGIN, "", *lines, "", END])
    PAGE.write_text(before + text + rest.split(END)[1], encoding="utf-8")
    for model in sorted({run.read_config().model for run in runs}):
        shown = {r.path.name: r.read_metrics() for r in runs if r.read_config().model == model}
        figures.save(HERE.parent / "assets" / f"results-{model}.png", figures.curves, shown)
    print(json.dumps({run.path.name: len(run.read_metrics()) for run in runs}))


if __name__ == "__main__":
    main()
