"""Compares several steps in one dispatch with a Python loop: ``python benchmarks/scan.py [MODEL]``.

Prints which of the two the training loop should use on this machine, and which it uses.
"""

import sys
import time

import jax
from programs import IMAGES, draw

from jaxcifar.core import state, steps
from jaxcifar.core.models import create_model
from jaxcifar.runtime.process import computes_on_cpu


def main() -> None:
    """Print the seconds a step of both, and their ratio."""
    model = create_model(sys.argv[1] if len(sys.argv) > 1 else "resnet50_layer4")
    optimizer = state.make_optimizer(1e-3)
    examples = jax.device_put(steps.Examples(*draw()))
    order = state.epoch_order(jax.random.key(1), 0, examples=IMAGES, batch_size=100)
    seconds = {}
    for name, count, dispatches in (("loop", 1, 4), ("scan", 4, 1)):
        train_state = state.create_state(jax.random.key(0), model, optimizer)
        totals = steps.Metrics.zeros()
        for attempt in range(3):
            start = time.perf_counter()
            for _ in range(dispatches):
                train_state, totals = steps.train_steps_at(
                    *(train_state, totals, examples, order, jax.random.key(2)),
                    augment="crop-flip",
                    count=count,
                )
            jax.block_until_ready(totals)
            if attempt:  # the first compiles
                took = (time.perf_counter() - start) / 4
                seconds[name] = min(took, seconds.get(name, took))
    used = "the loop" if computes_on_cpu() else "scan"
    print(
        f"loop {seconds['loop']:.3f} s, scan {seconds['scan']:.3f} s a step: scan takes"
        f" {seconds['scan'] / seconds['loop']:.2f} times the loop; training uses {used}"
    )


if __name__ == "__main__":
    main()
