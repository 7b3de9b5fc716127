"""Time one task of one program in a process of its own and print the figures as JSON.

python benchmarks/measure.py jaxcifar train vgg16 float32 --batch-size 100 --steps 5
"""

import argparse
import json
import resource
import sys
import time

from jaxcifar.runtime import memory

START = time.monotonic() - time.process_time()  # about when the process began
OURS = "jaxcifar" in sys.argv[1:]
if OURS:
    memory.share_arenas()  # before numpy and JAX start threads

from programs import PROGRAMS  # noqa: E402


def main() -> None:
    """Warm up with three runs, then time each of ``--steps``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("task", choices=("train", "evaluate", "epoch"))
    parser.add_argument("model")
    parser.add_argument("precision", choices=("float32", "bfloat16"))
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--chunk", type=int, default=1, help="steps timed at once")
    arguments = parser.parse_args()

    if OURS:  # the other programs must not pay for an import of JAX
        from jaxcifar.runtime import process

        process.start(use_compile_cache=False)
    run = PROGRAMS[arguments.program](
        arguments.task, arguments.model, arguments.precision, arguments.batch_size
    )
    run(1)
    first_step = time.monotonic() - START
    if OURS:
        memory.keep_freed()
    run(arguments.chunk)
    run(arguments.chunk)
    seconds = []
    for _ in range(arguments.steps):
        start = time.perf_counter()
        run(arguments.chunk)
        seconds.append((time.perf_counter() - start) / arguments.chunk)
    figures = {
        "seconds": seconds,
        "first_step": first_step,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
