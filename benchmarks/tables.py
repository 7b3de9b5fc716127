"""The tables that ``bench.py`` makes of its figures."""

from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

MODELS = ("vgg16", "resnet50_layer4")
NAMES = {"vgg16": "VGG16", "resnet50_layer4": "ResNet50_layer4"}
TORCH, COMPILED, STOCK, OURS = "torch", "torch.compile", "stock flax", "jaxcifar"
COMMAND = "jaxcifar train"
WARM, COLD = "warm compile cache", "empty compile cache"
FAILED = "failed"


class Cell(NamedTuple):
    """What the programs do in one cell of the table."""

    row: str
    task: str
    precision: str
    batch_size: int
    title: str


CELLS = (
    Cell("train", "train", "float32", 100, "train step, float32"),
    Cell("train", "train", "bfloat16", 100, "train step, bfloat16"),
    Cell("evaluate", "evaluate", "float32", 100, "evaluation, float32"),
    Cell("evaluate", "evaluate", "bfloat16", 100, "evaluation, bfloat16"),
    Cell("epoch", "epoch", "float32", 100, "epoch with augmentation, float32"),
    *(
        Cell("batches", "train", "float32", size, f"train step at batch {size}, float32")
        for size in (32, 256, 1024)
    ),
)
TRAIN = [cell.title for cell in CELLS if cell.row == "train"]


def record(
    title: str, model: str, program: str, seconds: list[float], peak_bytes: int = 0
) -> dict[str, Any]:
    """Return the figures of one program in a cell; without seconds, it has failed."""
    figures = {"title": title, "model": model, "program": program, "steps": len(seconds)}
    if seconds:
        figures |= {"seconds": median(seconds), "fastest": min(seconds), "slowest": max(seconds)}
        figures |= {"peak_bytes": peak_bytes}
    return figures


def fastest(results: list[dict[str, Any]], model: str, titles: list[str], *programs: str) -> Any:
    """Return the record with the least seconds, or None if all failed."""
    found = [
        r
        for r in results
        if r["model"] == model and r["title"] in titles and r["program"] in programs and r["steps"]
    ]
    return min(found, key=lambda r: r["seconds"], default=None)


def ratio(results: list[dict[str, Any]], model: str, *titles: str) -> str:
    """Return the time of the faster torch program over ours."""
    torch = fastest(results, model, [*titles], TORCH, COMPILED)
    ours = fastest(results, model, [*titles], OURS)
    return f"{torch['seconds'] / ours['seconds']:.2f}" if torch and ours else FAILED


def memory(results: list[dict[str, Any]], model: str, title: str) -> str:
    """Return our peak over that of torch, which is not compiled."""
    torch, ours = (fastest(results, model, [title], program) for program in (TORCH, OURS))
    return f"{ours['peak_bytes'] / torch['peak_bytes']:.2f}" if torch and ours else FAILED


def seconds(results: list[dict[str, Any]], model: str, title: str, program: str) -> str:
    """Return a program's median; nothing if it was not asked for."""
    asked = [
        r for r in results if (r["model"], r["title"], r["program"]) == (model, title, program)
    ]
    if not asked:
        return ""
    return f"{asked[0]['seconds']:.3f}" if asked[0]["steps"] else FAILED


def summary(records: list[dict[str, Any]]) -> str:
    """Return a line for the log."""
    parts = [
        f"{r['program']} {r['seconds']:.3f} s ({r['fastest']:.3f} to {r['slowest']:.3f})"
        if r["steps"]
        else f"{r['program']} {FAILED}"
        for r in records
    ]
    return ", ".join(parts)


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """Return a markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def against_torch(figures: dict[str, Any]) -> list[str]:
    """Return what was measured on, the ratios, and the seconds."""
    results, machine = figures["results"], figures["machine"]
    models = [model for model in MODELS if any(r["model"] == model for r in results)]
    titles = {r["title"] for r in results}

    def row(head: str, cell: Callable[[str], str]) -> list[str]:
        return [head, *map(cell, models)]

    rows = []
    for title in (cell.title for cell in CELLS if cell.title in titles):
        rows.append(row(title, lambda model, title=title: ratio(results, model, title)))
        if title == TRAIN[-1]:
            best = "best of torch over best of ours, any precision"
            rows.append(row(best, lambda model: ratio(results, model, *TRAIN)))
    for title in (title for title in TRAIN if title in titles):
        head = title.replace("train step", "peak memory of training") + ", ours / torch's"
        rows.append(row(head, lambda model, title=title: memory(results, model, title)))
    for title in (title for title in (WARM, COLD) if title in titles):
        head = f"`jaxcifar train` on {figures['dataset']} to its first step, {title}"
        rows.append(row(head, lambda model, title=title: start(results, model, title)))
    versions = ", ".join(f"{name} {machine.get(name, '-')}" for name in ("python", "jax", "torch"))
    took = f"One run of {figures['seconds'] / 60:.0f} minutes on {machine['processor']}"
    lines = [f"{took}, {machine['date']}, with {versions}.", ""]
    lines += table(["", *(NAMES[model] for model in models)], rows)
    programs = [
        p for p in (TORCH, COMPILED, STOCK, OURS) if any(r["program"] == p for r in results)
    ]
    heads = [f"{NAMES[model]}: {program}" for model in models for program in programs]
    rows = [
        [title, *(seconds(results, model, title, p) for model in models for p in programs)]
        for title in (cell.title for cell in CELLS if cell.title in titles)
    ]
    return [*lines, "", "The medians in seconds:", "", *table(["", *heads], rows)]


def start(results: list[dict[str, Any]], model: str, title: str) -> str:
    """Return the seconds of the command."""
    found = fastest(results, model, [title], OURS)
    return f"{found['seconds']:.1f} s" if found else FAILED


def batch_sizes(figures: dict[str, Any]) -> list[str]:
    """Return the images per second of float32 train steps."""
    titles = {100: TRAIN[0]} | {
        cell.batch_size: cell.title for cell in CELLS if cell.row == "batches"
    }
    programs = [(model, program) for model in MODELS for program in (OURS, TORCH)]
    rows = []
    for size, title in sorted(titles.items()):
        row = [str(size)]
        for model, program in programs:
            of = (TORCH, COMPILED) if program == TORCH else (OURS,)
            found = fastest(figures["results"], model, [title], *of)
            row.append(f"{size / found['seconds']:.0f}" if found else FAILED)
        rows.append(row)
    return table(["batch", *(f"{NAMES[model]}, {program}" for model, program in programs)], rows)


def fill(text: str, name: str, lines: list[str]) -> str:
    """Replace what is between the two comments of this name."""
    begin, end = f"<!-- {name}: make bench writes this -->", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return before + "\n".join([begin, "", *lines, "", end]) + after
