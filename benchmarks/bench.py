"""jaxcifar against torch, side by side: ``make bench``.

Each figure is measured in processes of its own, the programs in turn, ``--rounds`` times; a
cell is the median over all steps of all rounds. Ratios are torch / jaxcifar: above 1 we are
faster. Leave the machine alone meanwhile.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

MEASURE = Path(__file__).with_name("measure.py")
MODELS = ("vgg16", "resnet50_layer4")
TORCH, COMPILED, STOCK, OURS = "torch", "torch.compile", "stock flax", "jaxcifar"
# Task, precision, programs.
ROWS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("train", "float32", (TORCH, COMPILED, STOCK, OURS)),
    ("train", "bfloat16", (TORCH, COMPILED, OURS)),
    ("evaluate", "float32", (TORCH, COMPILED, STOCK, OURS)),
    ("epoch", "float32", (TORCH, OURS)),
)


def measure(program: str, task: str, model: str, precision: str, **options: Any) -> dict[str, Any]:
    """Runs ``measure.py``; what fails gives an empty dict and a line on stderr."""
    command = [sys.executable, str(MEASURE), program, task, model, precision]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"  {' '.join(command[2:])}: {last}", file=sys.stderr)
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def collect(rounds: int, steps: int, models: tuple[str, ...]) -> list[dict[str, Any]]:
    """All figures; the programs take turns."""
    results = []
    for model in models:
        for task, precision, programs in ROWS:
            figures: dict[str, list[dict[str, Any]]] = {program: [] for program in programs}
            for _ in range(rounds):
                for program in programs:
                    count = 1 if program == STOCK else steps
                    if done := measure(program, task, model, precision, steps=count):
                        figures[program].append(done)
            for program, runs in figures.items():
                if runs:
                    seconds = [s for run in runs for s in run["seconds"]]
                    results.append(
                        {
                            "model": model,
                            "task": task,
                            "precision": precision,
                            "program": program,
                            "seconds": median(seconds),
                            "fastest": min(seconds),
                            "slowest": max(seconds),
                            "first_step": min(run["first_step"] for run in runs),
                            "peak_bytes": max(run["peak_bytes"] for run in runs),
                        }
                    )
            print(row(results, model, task, precision), flush=True)
    return results


def row(results: list[dict[str, Any]], model: str, task: str, precision: str) -> str:
    """One line of the table: median (spread) of each program, and the ratio."""
    cells = {
        r["program"]: r
        for r in results
        if (r["model"], r["task"], r["precision"]) == (model, task, precision)
    }
    text = f"{model:16} {task:9} {precision:9}"
    for program in (TORCH, COMPILED, STOCK, OURS):
        cell = cells.get(program)
        text += f" {cell['seconds']:7.3f} s ({cell['fastest']:.3f})" if cell else f" {'':17}"
    if TORCH in cells and OURS in cells:
        theirs = min(cells[p]["seconds"] for p in (TORCH, COMPILED) if p in cells)
        ours = cells[OURS]
        memory = ours["peak_bytes"] / cells[TORCH]["peak_bytes"]
        text += f" {theirs / ours['seconds']:6.2f} {memory:7.2f} {ours['first_step']:7.1f} s"
    return text


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    names = ("jaxcifar", "jax", "jaxlib", "flax", "optax", "torch", "numpy")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }


def main() -> None:
    """Prints the table and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--json", type=Path, default=Path("bench.json"))
    arguments = parser.parse_args()
    print(json.dumps(machine()))
    print(
        f"{'model':16} {'task':9} {'precision':9}"
        + "".join(f" {program:>17}" for program in (TORCH, COMPILED, STOCK, OURS))
        + f" {'ratio':>6} {'memory':>7} {'1st step':>9}"
    )
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)  # the first round fills it
        results = collect(arguments.rounds, arguments.steps, tuple(arguments.models))
    arguments.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=2))


if __name__ == "__main__":
    main()
