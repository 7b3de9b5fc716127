"""Weights for other programs: ``jaxcifar export``, or ``to_stablehlo(weights)``."""

if __name__ == "__main__":  # python -m jaxcifar.export
    from jaxcifar import cli

    cli.main("export")

from pathlib import Path

import jax
import numpy as np

from jaxcifar.config.commands import PLATFORMS, ExportConfig
from jaxcifar.core import inference
from jaxcifar.core.models import INPUT_SHAPE
from jaxcifar.errors import UserError
from jaxcifar.files import atomic, weights
from jaxcifar.runtime import process


def to_stablehlo(source: weights.Weights) -> bytearray:
    """Return the forward pass as a program that ``jax.export.deserialize`` reads.

    It maps uint8 ``(N, 32, 32, 3)``, N at least 1, to float32 logits ``(N, classes)``.
    """
    state = source.state()
    images = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), *INPUT_SHAPE), np.uint8)
    with jax.default_matmul_precision("highest"):  # Winograd's convolutions are for CPUs alone
        forward = jax.jit(lambda images: inference.forward(state, images))
        return jax.export.export(forward, platforms=PLATFORMS)(images).serialize()


def main(config: ExportConfig) -> None:
    """Run the command; bad input writes nothing."""
    process.start(prefer_cpu=True)  # so that the program is the same everywhere
    target = Path(config.output)
    atomic.check_output(target, source=Path(config.checkpoint), force=config.force)
    kind = "stablehlo" if target.suffix == ".stablehlo" else weights.format_of(target)
    if kind == "orbax":
        suffixes = ".ckpt, .pt, .pth, .safetensors or .stablehlo, or jaxcifar port for Orbax"
        raise UserError(f"{target}: unknown format; use {suffixes}")
    loaded = weights.load(config.checkpoint, **config.chosen)
    with atomic.replacing(target) as path:
        if kind == "stablehlo":
            path.write_bytes(to_stablehlo(loaded))
        else:
            weights.write(path, loaded, kind, {})
        size = path.stat().st_size / 2**20
    print(f"wrote {target} ({kind}, {loaded.model}, {loaded.num_classes} classes, {size:.1f} MiB)")
