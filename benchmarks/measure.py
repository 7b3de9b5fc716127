"""Time one task of one program in a process of its own and print the figures as JSON.

python benchmarks/measure.py jaxcifar train vgg16 float32 --batch-size 100 --steps 5

Without ``--steps``, it says when it is ready and then times as many as each line on stdin says.
"""

import argparse
import json
import resource
import sys
import time

from programs import PROGRAMS

START = time.monotonic() - time.process_time()  # about when the process began


def main() -> None:
    """Do a first step, then time others; the next two or so are still a warm-up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("task", choices=("train", "evaluate", "epoch"))
    parser.add_argument("model")
    parser.add_argument("precision", choices=("float32", "bfloat16"))
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--chunk", type=int, default=1, help="steps timed at once")
    arguments = parser.parse_args()

    ours = arguments.program == "jaxcifar"
    if ours:  # the other programs must not pay for an import of JAX
        from jaxcifar.runtime import process

        process.start(use_compile_cache=False)
    run = PROGRAMS[arguments.program](
        arguments.task, arguments.model, arguments.precision, arguments.batch_size
    )
    run(1)
    first_step = time.monotonic() - START
    if ours:
        process.keep_freed()

    def measure(count: int) -> None:
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            run(arguments.chunk)
            seconds.append((time.perf_counter() - start) / arguments.chunk)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        figures = {"seconds": seconds, "first_step": first_step, "peak_bytes": peak}
        print(json.dumps(figures), flush=True)

    if arguments.steps is not None:
        measure(arguments.steps)
        return
    measure(0)
    for line in sys.stdin:
        measure(int(line))


if __name__ == "__main__":
    main()
