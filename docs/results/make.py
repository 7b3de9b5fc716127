"""Make the tables and the pictures of ``docs/results.md`` from the runs in this directory.

``python docs/results/make.py RUN...`` first copies the records of runs here; those of few epochs go
to ``beside-torch/``, with which the first epochs of all are compared.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from matplotlib import figure
from scipy import stats

from jaxcifar.config.options import command_line
from jaxcifar.files.run import METRICS_FILE, RunDirectory
from jaxcifar.reporting import figures

HERE = Path(__file__).parent
PAGE = HERE.parent / "results.md"
ASSETS, BESIDE_TORCH = HERE.parent / "assets", HERE / "beside-torch"
EPOCHS = 3  # are compared with torch


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
        if record["split"] == "train" and "images_per_second" in record:
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


def copy(source: Path) -> None:
    """Copy the records of a run, without what is a matter of one machine."""
    run = RunDirectory(source)
    epochs = max(record.get("epoch", 0) for record in run.read_metrics())
    folder = (HERE if epochs > EPOCHS else BESIDE_TORCH) / source.name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / METRICS_FILE, folder / METRICS_FILE)
    RunDirectory(folder).write_config(run.read_config().recipe(), run.read_environment())


def runs_in(folder: Path) -> list[RunDirectory]:
    """Return the runs whose records are in the folder, by name."""
    return [RunDirectory(path.parent) for path in sorted(folder.glob(f"*/{METRICS_FILE}"))]


def results(runs: list[RunDirectory]) -> list[str]:
    """Return the table of the runs, and their commands."""
    heads = ["run", "network", "seed", "epochs", "5,000 held-out training images"]
    heads += ["first 1,000 test images", "training time", "machine", "commit"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *map(row, runs)]
    lines += ["", "The commands:", "", "```sh"]
    return [*lines, *(command_line(run.read_config(), "jaxcifar", "train") for run in runs), "```"]


def by_network(run: RunDirectory) -> tuple[str, str, int]:
    """Return network, program and seed, by which runs are sorted."""
    config, name = run.read_config(), run.path.name
    program = "torch" if name.startswith("torch-") else "jaxcifar"
    return (
        config.model,
        f"{program}{', bfloat16 products' if '-bf16-' in name else ''}",
        config.seed,
    )


def first_epochs(run: RunDirectory, split: str) -> list[dict[str, Any]]:
    """Return a split's records of the epochs that are compared."""
    records = run.read_metrics()
    return [r for r in records if r["split"] == split and r["epoch"] <= EPOCHS]


def comparison(runs: list[RunDirectory]) -> list[str]:
    """Return the table of loss and validation accuracy of each of the first epochs."""
    lines = ["| run | mean training loss | validation accuracy |", "|---|---|---|"]
    for run in runs:
        last = {record["epoch"]: record["loss"] for record in first_epochs(run, "train")}
        losses = ", ".join(f"{loss:.3f}" for loss in last.values())
        shares = (f"{100 * record['accuracy']:.1f} %" for record in first_epochs(run, "val"))
        lines.append(f"| {run.path.name} | {losses} | {', '.join(shares)} |")
    return lines


def draw_comparison(runs: list[RunDirectory]) -> Any:
    """Draw each network's loss and accuracy; a program has a colour, another seed is dashed."""
    colors = {"jaxcifar": "C0", "torch": "C1", "jaxcifar, bfloat16 products": "C2"}
    models = sorted({run.read_config().model for run in runs})
    drawing = figure.Figure(figsize=(10, 6.5), layout="constrained")
    panels = drawing.subplots(2, len(models), squeeze=False)
    for run in runs:
        model, program, seed = by_network(run)
        color, line = colors[program], "--" if seed else "-"
        label = f"{program}, seed {seed}"
        column = panels[:, models.index(model)]
        for axes, split in zip(column, ("train", "val"), strict=True):
            quantity = "loss" if split == "train" else "accuracy"
            records = first_epochs(run, split)
            steps, values = [r["step"] for r in records], [r[quantity] for r in records]
            axes.plot(steps, values, line, color=color, label=label)
            axes.set(title=f"{model}: {split} {quantity}", xlabel="step")
    for axes in panels.flat:
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return drawing


def fill(text: str, name: str, lines: list[str]) -> str:
    """Replace what is between the two comments of this name."""
    begin, end = f"<!-- {name}: make results writes this -->", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return before + "\n".join([begin, "", *lines, "", end]) + after


def main() -> None:
    """Copy what is asked for, then write the tables and the pictures."""
    for source in map(Path, sys.argv[1:]):
        copy(source)
    runs, others = runs_in(HERE), runs_in(BESIDE_TORCH)
    text = fill(PAGE.read_text(encoding="utf-8"), "runs", results(runs))
    if others:
        both = sorted(runs + others, key=by_network)
        text = fill(text, "comparison", comparison(both))
        figures.save(ASSETS / "results-beside-torch.png", draw_comparison, both)
    PAGE.write_text(text, encoding="utf-8")
    for model in sorted({run.read_config().model for run in runs}):
        shown = {r.path.name: r.read_metrics() for r in runs if r.read_config().model == model}
        figures.save(ASSETS / f"results-{model}.png", figures.curves, shown)
    print(json.dumps({run.path.name: len(run.read_metrics()) for run in runs + others}))


if __name__ == "__main__":
    main()
