"""Kills a training run at random moments and resumes it, again and again: ``make torture``.

Each killed run has to end with the values of an undisturbed one, to the bit. Checkpoints
are written after every step, so that most kills fall into one.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jaxcifar.files.run import has_checkpoint

OPTIONS = ["--model", "resnet50_layer4", "--dataset", "digits", "--batch-size", "90"]
OPTIONS += ["--epochs", "1", "--checkpoint-every", "1", "--log-every", "5"]


def command(workdir: Path, *more: str) -> list[str]:
    """The command line of a run."""
    return [sys.executable, "-m", "jaxcifar.train", "--workdir", str(workdir), *OPTIONS, *more]


def final(workdir: Path) -> tuple[str, str]:
    """What identifies a run's result: the digest of its last checkpoint, and its test record."""
    last = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    metadata = json.loads((last / "_CHECKPOINT_METADATA").read_text())
    record = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["split"] == "test"
    return metadata["custom_metadata"]["sha256_of_values"], json.dumps(record)


def torture(kills: int, seed: int) -> int:
    """Kills as often as asked for and returns in how many runs; fails where a result differs."""
    rng = random.Random(seed)
    done = runs = 0
    with tempfile.TemporaryDirectory() as folder:
        results = []
        for name in ("whole", "timed"):  # the first one may have to compile
            start = time.monotonic()
            subprocess.run(command(Path(folder) / name), check=True, capture_output=True)
            duration = time.monotonic() - start
            results.append(final(Path(folder) / name))
        expected, again = results
        assert again == expected
        while done < kills:
            runs += 1
            workdir = Path(folder) / f"run{runs}"
            resume: list[str] = []
            while True:
                process = subprocess.Popen(
                    command(workdir, *resume), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
                moment = rng.uniform(0.3, 1.0) * duration
                try:
                    output = process.communicate(timeout=moment if done < kills else None)[0]
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                    done += 1
                    print(f"kill {done} after {moment:.1f} s", flush=True)
                else:
                    assert process.returncode == 0, output.decode()
                    break
                resume = ["--resume"] if has_checkpoint(workdir) else []
            assert final(workdir) == expected, f"{workdir} ended differently"
    return runs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    runs = torture(arguments.kills, arguments.seed)
    print(f"{arguments.kills} kills in {runs} runs: every result identical")
