"""The time and memory of the port, without its imports: ``python benchmarks/port.py``.

Memory is the peak above what the process held after the imports, as a multiple of the size of the
file. Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = {
    "to Orbax": ["out"],
    "to safetensors": ["out.safetensors"],
    "to torch": ["out.ckpt"],
    "to Orbax, verified": ["out", "--verify"],
}


def memory(field: str) -> int:
    """Return the bytes of VmRSS (now) or VmHWM (peak)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure(source: str, target: str, *, verify: bool) -> None:
    """Port once in this process and print the figures as JSON."""
    import torch  # noqa: F401  (lazily imported by the port)

    from jaxcifar import port
    from jaxcifar.config.commands import PortConfig

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before, start = memory("VmRSS"), time.perf_counter()
    port.main(PortConfig(checkpoint=source, output=target, verify=verify))
    figures = {"seconds": time.perf_counter() - start, "bytes": memory("VmHWM") - before}
    print(json.dumps(figures))


def main() -> None:
    """Run each case in a process of its own, several times, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--verify", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure, verify=arguments.verify)
        return

    import torch

    from jaxcifar.porting.torch_models import create_torch_model

    for model in ("vgg16", "resnet50_layer4"):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / f"{model}.ckpt"
            torch.save(create_torch_model(model).state_dict(), source)
            size = source.stat().st_size
            print(f"{model}, {size / 1e6:.1f} MB, {arguments.runs} runs each")
            for name, (target, *options) in CASES.items():
                seconds, peaks = [], []
                for run in range(arguments.runs):
                    output = subprocess.run(  # noqa: S603
                        [sys.executable, __file__, *options,
                         "--measure", str(source), str(Path(folder) / f"{run}{len(name)}{target}")],
                        check=True, capture_output=True, text=True,
                    ).stdout  # fmt: skip
                    figures = json.loads(output.splitlines()[-1])
                    seconds.append(figures["seconds"])
                    peaks.append(figures["bytes"] / size)
                print(
                    f"  {name:20} {min(seconds):.2f} to {max(seconds):.2f} s,"
                    f" memory {min(peaks):.1f} to {max(peaks):.1f} times the file"
                )


if __name__ == "__main__":
    main()
