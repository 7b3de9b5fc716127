"""Compare jaxcifar with torch and with a stock Flax port: ``make bench``.

Each program runs in its own process, in turn, for ``--rounds`` rounds. A cell is the median
(fastest-slowest) over all steps of all rounds, in seconds. The ratio is the time of the faster
torch program over ours: above 1 we are faster. Memory is our peak over torch's. Compiled
programs are cached by a run that is not counted. Keep the machine idle.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from jaxcifar.runtime import process

MEASURE = Path(__file__).with_name("measure.py")
MODELS = ("vgg16", "resnet50_layer4")
TORCH, COMPILED, STOCK, OURS = "torch", "torch.compile", "stock flax", "jaxcifar"
# Task, precision, images a step, programs.
ROWS: tuple[tuple[str, str, int, tuple[str, ...]], ...] = (
    ("train", "float32", 100, (TORCH, COMPILED, STOCK, OURS)),
    ("train", "bfloat16", 100, (TORCH, COMPILED, OURS)),
    ("evaluate", "float32", 100, (TORCH, COMPILED, STOCK, OURS)),
    ("epoch", "float32", 100, (TORCH, OURS)),
    ("train", "float32", 32, (TORCH, OURS)),
    ("train", "float32", 256, (TORCH, OURS)),
    ("train", "float32", 1024, (TORCH, OURS)),
)


def measure(program: str, task: str, model: str, precision: str, **options: Any) -> dict[str, Any]:
    """Return what ``measure.py`` prints; if it fails, an empty dict, with a line on stderr."""
    command = [sys.executable, str(MEASURE), program, task, model, precision]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"  {' '.join(command[2:])}: {last}", file=sys.stderr)
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def collect(
    rounds: int, steps: int, chunk: int, models: tuple[str, ...]
) -> Iterator[list[dict[str, Any]]]:
    """Yield the figures of one row after the other."""
    for model in models:
        for task, precision, batch_size, programs in ROWS:
            figures: dict[str, list[dict[str, Any]]] = {program: [] for program in programs}
            measure(OURS, task, model, precision, steps=1, batch_size=batch_size)  # fills the cache
            for _ in range(rounds):
                for program in programs:
                    count = 1 if program == STOCK or batch_size > 256 else steps
                    options = {"steps": count, "chunk": chunk, "batch_size": batch_size}
                    if measured := measure(program, task, model, precision, **options):
                        figures[program].append(measured)
            row = []
            for program, runs in figures.items():
                if runs:
                    seconds = [s for run in runs for s in run["seconds"]]
                    row.append(
                        {
                            "model": model,
                            "task": task,
                            "precision": precision,
                            "batch_size": batch_size,
                            "program": program,
                            "seconds": median(seconds),
                            "fastest": min(seconds),
                            "slowest": max(seconds),
                            "images_per_second": batch_size / median(seconds),
                            "first_step": min(run["first_step"] for run in runs),
                            "peak_bytes": min(run["peak_bytes"] for run in runs),
                        }
                    )
            yield row


def line(row: list[dict[str, Any]]) -> str:
    """Return a row of the table."""
    if not row:
        return "nothing could be measured"
    cells = {cell["program"]: cell for cell in row}
    text = "{model:16} {task:9} {precision:9} {batch_size:5}".format(**row[0])
    for program in (TORCH, COMPILED, STOCK, OURS):
        text += (
            " {seconds:6.3f} ({fastest:.3f}-{slowest:.3f})".format(**cells[program])
            if program in cells
            else " " * 21
        )
    if TORCH in cells and OURS in cells:
        torch_seconds = min(cells[p]["seconds"] for p in (TORCH, COMPILED) if p in cells)
        ours = cells[OURS]
        memory = ours["peak_bytes"] / cells[TORCH]["peak_bytes"]
        text += f" {torch_seconds / ours['seconds']:6.2f} {ours['images_per_second']:8.0f}"
        text += f" {memory:7.2f} {ours['first_step']:7.1f} s"
    return text


def machine() -> dict[str, Any]:
    """Return the processor and the versions."""
    processor = platform.processor() or platform.machine()
    for entry in Path("/proc/cpuinfo").read_text().splitlines():
        if entry.startswith("model name"):
            processor = entry.partition(":")[2].strip()
            break
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        **process.versions("torch"),
    }


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--chunk", type=int, default=1, help="steps timed at once; 50 on a GPU")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--json", type=Path, default=Path("bench.json"))
    arguments = parser.parse_args()
    print(json.dumps(machine()))
    print(
        f"{'model':16} {'task':9} {'precision':9} batch"
        + "".join(f" {program:>20}" for program in (TORCH, COMPILED, STOCK, OURS))
        + f" {'ratio':>6} {'images/s':>8} {'memory':>7} {'1st step':>9}"
    )
    results = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
        for row in collect(
            arguments.rounds, arguments.steps, arguments.chunk, tuple(arguments.models)
        ):
            print(line(row), flush=True)
            results += row
            figures = {"machine": machine(), "results": results}
            arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
