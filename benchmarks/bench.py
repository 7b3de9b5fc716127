"""Compare jaxcifar with torch and write the tables of ``docs/performance.md``: ``make bench``.

Each program runs in a process of its own. Everything is compiled first, two programs at once. Then
the programs of a cell take turns of a few steps, so that a slower minute of the machine hits all
of them. ``--full`` measures longer, compiles torch for every cell and adds a stock Flax port.
``bench.json`` has the figures. Keep the machine idle.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import tables
from tables import COMPILED, MODELS, OURS, STOCK, TORCH, Cell
from timed import Program, first_step_of_command

from jaxcifar.data import cifar
from jaxcifar.runtime import process

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
ROWS = ("train", "evaluate", "epoch", "batches", "command")
COLD, WARM = 2, 3  # runs of the command


class Job(NamedTuple):
    """A part of the run: about how many seconds it takes, and what returns its results."""

    name: str
    seconds: float
    run: Callable[[], list[dict[str, Any]]]


def programs_of(cell: Cell, full: bool) -> list[str]:
    """Return what is compared in a cell."""
    precise = cell.precision == "float32" and cell.task != "epoch"
    compiled = full or cell.row in ("train", "evaluate")
    stock = full and precise and cell.row != "batches"
    return [TORCH, *[COMPILED] * compiled, *[STOCK] * stock, OURS]


def is_large(cell: Cell) -> bool:
    """Whether a step takes seconds."""
    return cell.batch_size > 256


class Bench:
    """The options of a run, and the compiled torch programs that wait for their turn."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.waiting: dict[tuple[str, Cell], Program] = {}

    def jobs(self) -> Iterator[Job]:
        """Yield the parts of the run in their order."""
        rows = self.options.rows
        for model in self.options.models:
            cells = [cell for cell in tables.CELLS if cell.row in rows]
            if cells:
                expected = len(cells) * (22 if model == "vgg16" else 36)
                yield Job(f"{model}: compile", expected, partial(self.compile, model, cells))
            for cell in cells:
                programs = len(programs_of(cell, self.options.full))
                expected = 60 if is_large(cell) else 10 + self.options.seconds * programs
                yield Job(f"{model}: {cell.title}", expected, partial(self.measure, model, cell))
            if "command" in rows:
                yield Job(f"{model}: {tables.COMMAND}", 90, partial(self.commands, model))

    def start(self, name: str, model: str, cell: Cell) -> Program:
        """Start a program of a cell."""
        arguments = [name, cell.task, model, cell.precision]
        sizes = [f"--batch-size={cell.batch_size}", f"--chunk={self.options.chunk}"]
        return Program([*arguments, *sizes])

    def compile(self, model: str, cells: list[Cell]) -> list[dict[str, Any]]:
        """Start torch's compiled programs, and ours once to fill the cache."""
        wanted = [
            (name, cell)
            for name in (COMPILED, OURS)  # torch's take longer
            for cell in cells
            if name in programs_of(cell, self.options.full)
        ]

        def start(job: tuple[str, Cell]) -> None:
            name, cell = job
            program = self.start(name, model, cell)
            if name == COMPILED:
                self.waiting[model, cell] = program
            else:
                program.close()

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(start, wanted))
        return []

    def measure(self, model: str, cell: Cell) -> list[dict[str, Any]]:
        """Let the programs of a cell take turns; return a record of each."""
        names = programs_of(cell, self.options.full)
        rounds = min(self.options.rounds, 2) if is_large(cell) else self.options.rounds

        def start(name: str) -> Program:
            waiting = self.waiting.pop((model, cell), None) if name == COMPILED else None
            return waiting or self.start(name, model, cell)

        with ExitStack() as stack:
            with ThreadPoolExecutor(1 if is_large(cell) else 2) as pool:
                programs = dict(zip(names, pool.map(start, names), strict=True))
            turns = {}
            for name, program in programs.items():
                stack.enter_context(program)
                warm = program.time(1 if is_large(cell) or name == STOCK else 2)
                turn = self.options.seconds / rounds / self.options.chunk
                turns[name] = max(1, round(turn / warm[-1])) if warm else 0
            seconds: dict[str, list[float]] = {name: [] for name in names}
            for _ in range(rounds):
                for name, program in programs.items():
                    time.sleep(0.05)  # until the threads of the last one sleep
                    seconds[name] += program.time(turns[name])
            return [
                tables.record(cell.title, model, name, seconds[name], programs[name].peak_bytes)
                for name in names
            ]

    def commands(self, model: str) -> list[dict[str, Any]]:
        """Time the command without compiled programs, then with those that it has left."""
        with tempfile.TemporaryDirectory() as folder:
            caches, cold = Path(folder), []
            command = partial(first_step_of_command, model, self.options.dataset, caches)
            command()  # decodes the images and leaves them in the cache
            for _ in range(COLD):
                for programs in caches.glob("jaxcifar/jaxlib-*"):
                    shutil.rmtree(programs)
                cold.append(command())
            warm = [command() for _ in range(WARM)]
        return [
            tables.record(title, model, OURS, [s for s in seconds if s is not None])
            for title, seconds in ((tables.WARM, warm), (tables.COLD, cold))
        ]


def available_dataset() -> str:
    """Return ``cifar10``, or ``digits`` where it would have to be downloaded."""
    folder = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    found = [*folder.glob("cifar10/*/dataset_info.json"), *cifar.find(folder, cifar.CIFAR10)]
    return "cifar10" if found else "digits"


def machine() -> dict[str, Any]:
    """Return the processor, the versions and the day."""
    processor = f"{os.cpu_count()} x {process.cpu_info('model name') or 'unknown processor'}"
    return {"processor": processor, "date": f"{date.today()}", **process.versions("torch")}


def minutes(seconds: float) -> str:
    """Return a time as ``m:ss``."""
    return f"{int(seconds // 60)}:{int(seconds % 60):02}"


def main() -> None:
    """Measure, print each part when it ends, and write the page and the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS)
    parser.add_argument("--full", action="store_true", help="also what takes long")
    parser.add_argument("--rounds", type=int, help="turns of each program (default: 4; full: 10)")
    parser.add_argument("--seconds", type=float, help="of all turns (default: 6; full: 30)")
    parser.add_argument("--minutes", type=float, default=19, help="time less if it takes longer")
    parser.add_argument("--chunk", type=int, default=1, help="steps timed at once; 50 on a GPU")
    parser.add_argument("--dataset", default=available_dataset(), choices=("cifar10", "digits"))
    parser.add_argument("--json", type=Path, default=Path("bench.json"))
    options = parser.parse_args()
    options.rounds = options.rounds or (10 if options.full else 4)
    options.seconds = options.seconds or (30 if options.full else 6)
    figures = {"machine": machine(), "dataset": options.dataset, "full": options.full}
    records: list[dict[str, Any]] = []
    print(json.dumps(figures))
    jobs = list(Bench(options).jobs())
    start, done = time.monotonic(), 0.0
    with tempfile.TemporaryDirectory() as caches:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{caches}/jax"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # as the command has it
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{caches}/torch"
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # two programs compile at once
        for number, job in enumerate(jobs, start=1):
            new = job.run()
            records += new
            done += job.seconds
            elapsed = time.monotonic() - start
            left = elapsed / done * (sum(job.seconds for job in jobs) - done)
            place = f"[{number}/{len(jobs)}, {minutes(elapsed)}, {minutes(left)} left]"
            if elapsed + left > 60 * options.minutes and not options.full:
                options.seconds = max(2, 0.7 * options.seconds)
            print(f"{place} {job.name} {tables.summary(new)}".rstrip(), flush=True)
            figures |= {"seconds": elapsed, "results": records}
            options.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    against, batches = tables.against_torch(figures), tables.batch_sizes(figures)
    print("\n".join(["", *against, "", *batches]))
    if set(options.models) == set(MODELS) and set(options.rows) == set(ROWS):
        text = PAGE.read_text(encoding="utf-8")
        text = tables.fill(tables.fill(text, "against torch", against), "batch sizes", batches)
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(f"{PAGE} is left as it is: that was a part", file=sys.stderr)


if __name__ == "__main__":
    main()
