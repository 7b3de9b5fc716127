"""Times every convolution of a model by itself: ``python benchmarks/layers.py``.

For each shape it runs the algorithm that ``jaxcifar.core.conv`` chooses (marked ``*``) and XLA's
own. It prints milliseconds and GFLOP/s of the forward pass, the gradient of the images and that
of the kernel. GFLOP/s count the operations of the plain convolution, so an algorithm that needs
fewer can exceed the matmul peak, which is measured first. Leave the machine alone.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxcifar.core import conv, layers
from jaxcifar.core.models import create_model
from jaxcifar.runtime import process

process.start(use_compile_cache=False)

Layer = tuple[tuple[int, ...], tuple[int, ...], conv.Window]
Algorithm = Callable[..., jax.Array]


def fastest(function: Callable[..., Any], *arguments: Any, repeats: int) -> float:
    """Return the seconds of the fastest call after the first."""
    function = jax.jit(function)
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def matmul_peak(dtype: str, repeats: int) -> float:
    """Measure GFLOP/s of a square product that sums in float32."""
    size = 2048
    a = jnp.ones((size, size), dtype)
    seconds = fastest(
        lambda a: jax.lax.dot(a, a, preferred_element_type=jnp.float32), a, repeats=repeats
    )
    return 2 * size**3 / seconds / 1e9


def convolutions(model: str, batch_size: int) -> Counter[Layer]:
    """Count the convolutions of a model by shapes and window."""
    seen: Counter[Layer] = Counter()

    def record(x: jax.Array, kernel: jax.Array, window: conv.Window, *bias: Any, **how: Any) -> Any:
        seen[x.shape, kernel.shape, window] += 1
        return conv.conv2d(x, kernel, window, *bias, **how)

    layers.conv2d, real = record, layers.conv2d
    try:
        net = create_model(model)
        images = jnp.zeros((batch_size, 32, 32, 3))
        jax.eval_shape(lambda: net.init(jax.random.key(0), images, train=False))
    finally:
        layers.conv2d = real
    return seen


def widths(batch_size: int) -> Counter[Layer]:
    """Return 3x3 layers on 8x8 pixels; the time should grow with the square of the width."""
    window = conv.Window.of(3, 1, 1)
    return Counter(
        ((batch_size, 8, 8, width), (3, 3, width, width), window)
        for width in (32, 64, 128, 256, 512)
    )


def candidates(layer: Layer, dtype: str) -> Iterator[Algorithm]:
    """Yield the chosen algorithm and, unless it takes about a second, XLA's own."""
    image_shape, kernel_shape, window = layer
    x, kernel = (jax.ShapeDtypeStruct(s, jnp.dtype(dtype)) for s in (image_shape, kernel_shape))
    chosen = conv.choose(x, kernel, window, train=True)
    yield chosen
    if chosen not in (conv.xla, conv.dense):
        yield conv.xla


def measure(layer: Layer, algorithm: Algorithm, dtype: str, repeats: int) -> dict[str, float]:
    """Return the seconds of the three passes."""
    image_shape, kernel_shape, window = layer
    x = jax.random.normal(jax.random.key(0), image_shape, dtype)
    kernel = jax.random.normal(jax.random.key(1), kernel_shape, dtype)

    def run(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return algorithm(x, kernel, window)

    dy = jnp.ones_like(jax.jit(run)(x, kernel))
    return {
        "forward": fastest(run, x, kernel, repeats=repeats),
        "images": fastest(
            lambda x, kernel, dy: jax.vjp(lambda x: run(x, kernel), x)[1](dy),
            *(x, kernel, dy),
            repeats=repeats,
        ),
        "kernel": fastest(
            lambda x, kernel, dy: jax.vjp(lambda kernel: run(x, kernel), kernel)[1](dy),
            *(x, kernel, dy),
            repeats=repeats,
        ),
    }


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["vgg16", "resnet50_layer4"])
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    process.keep_freed()
    repeats, results = arguments.repeats, []
    for dtype in arguments.precision:
        peak = matmul_peak(dtype, repeats)
        print(f"{dtype}: matmul peak {peak:.0f} GFLOP/s; milliseconds (GFLOP/s)")
        rows = [(model, convolutions(model, arguments.batch_size)) for model in arguments.models]
        for model, shapes in [*rows, ("width", widths(arguments.batch_size))]:
            for layer, times in shapes.items():
                image, kernel, window = layer
                stride, padding = window.strides[0], window.paddings[0][0]
                out = (image[1] + 2 * padding - kernel[0]) // stride + 1
                gflop = 2 * image[0] * out**2 * kernel[0] * kernel[1] * kernel[2] * kernel[3] / 1e9
                for index, algorithm in enumerate(candidates(layer, dtype)):
                    seconds = measure(layer, algorithm, dtype, repeats)
                    name = f"{kernel[0]}x{kernel[1]}/{stride}, {kernel[2]} -> {kernel[3]}"
                    cells = "".join(
                        f" {passed} {1e3 * s:7.2f} ({gflop / s:4.0f})"
                        for passed, s in seconds.items()
                    )
                    print(
                        f"{model:16} {times} x {name:20} on {image[1]:2}x{image[2]:<2}"
                        f" {algorithm.__name__ + '*' * (index == 0):10}{cells}",
                        flush=True,
                    )
                    results.append(
                        {
                            "model": model,
                            "layers": times,
                            "image": image,
                            "kernel": kernel,
                            "stride": stride,
                            "padding": padding,
                            "precision": dtype,
                            "algorithm": algorithm.__name__,
                            "chosen": index == 0,
                            "gflop": gflop,
                            "peak_gflops": peak,
                            "seconds": seconds,
                        }
                    )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
