"""Weights for other programs: ``python -m jaxcifar.export``, or ``to_stablehlo(weights)``."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxcifar import cli
from jaxcifar.config import REQUIRED, WeightsConfig, option
from jaxcifar.errors import UserError
from jaxcifar.files import atomic as outputs

if TYPE_CHECKING:
    from jaxcifar.files.weights import Weights

STABLEHLO_SUFFIX = ".stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
HOW_TO_RUN = {
    "torch": "load it with model.load_state_dict(torch.load({}))",
    "safetensors": "load it with model.load_state_dict(safetensors.torch.load_file({}))",
    "stablehlo": "run it with"
    " jax.export.deserialize(bytearray(open({}, 'rb').read())).call(images)",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(WeightsConfig):
    """What is exported, and to where."""

    output: str = option(
        REQUIRED,
        "what to write: NAME.ckpt/.pt/.pth (a torch state dict), NAME.safetensors (the same), or"
        " NAME.stablehlo: a program with the weights inside, which jax runs without jaxcifar on"
        f" {', '.join(PLATFORMS)}; it maps raw uint8 images (N, 32, 32, 3), N of any size, to"
        " float32 logits (N, classes)",
        positional=True,
    )
    force: bool = option(False, "replace an existing OUTPUT")


def export(config: ExportConfig) -> str:
    """Writes the file, and returns a line that says what it is and how to run it.

    Raises:
      UserError: the input is bad or the output exists; nothing was written.
    """
    source, target = Path(config.checkpoint), Path(config.output)
    outputs.require_place(target, source)
    outputs.require_free(target, force=config.force)

    from jaxcifar.files import weights

    program = target.suffix == STABLEHLO_SUFFIX
    target_format = "stablehlo" if program else weights.format_of(target)
    if target_format == "orbax":
        raise UserError(
            f"{target} is no name of a format: end it in .ckpt, .pt, .pth, .safetensors or"
            f" {STABLEHLO_SUFFIX} (tools/port_torch_ckpt.py writes Orbax folders)"
        )
    loaded = weights.load(source, ema=config.ema)
    loaded.tell(config.checkpoint)
    with outputs.written_aside(target) as new:
        if program:
            _write(new, to_stablehlo(loaded))
        else:
            weights.write(new, loaded, weights.format_of(target), {})
        size = new.stat().st_size
    return (
        f"wrote {target} ({target_format}, {loaded.model}, {loaded.num_classes} classes,"
        f" {size / 2**20:.1f} MiB); {HOW_TO_RUN[target_format].format(repr(str(target)))}"
    )


def _write(path: Path, content: bytearray) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"{len(content) / 2**20:.0f} MiB cannot be written ({error.strerror}): choose another"
            " folder"
        ) from error


def to_stablehlo(weights: "Weights") -> bytearray:
    """The forward pass of evaluation as a program of its own, serialized by ``jax.export``.

    One program serves all platforms with float32's precision: that of
    ``jax.default_matmul_precision("highest")``, without Winograd's convolutions. They would lower
    for a symbolic batch, too, and run VGG16's batches of 100 in half the time on a CPU; but they
    are for CPUs alone, and folding their kernels delays each compilation by seconds, with
    warnings.

    Returns:
      What ``jax.export.deserialize`` takes; its ``call`` maps uint8 ``(N, 32, 32, 3)`` to float32
      logits ``(N, num_classes)``, for any N from 1, on any of ``PLATFORMS``.
    """
    import jax
    import numpy as np

    from jaxcifar.core.models import INPUT_SHAPE
    from jaxcifar.core.steps import predict_step

    state = weights.state()

    def logits(images: jax.Array) -> jax.Array:
        return predict_step(state, images)

    shape = (*jax.export.symbolic_shape("batch"), *INPUT_SHAPE)
    with jax.default_matmul_precision("highest"):
        exported = jax.export.export(jax.jit(logits), platforms=PLATFORMS)(
            jax.ShapeDtypeStruct(shape, np.uint8)
        )
    return exported.serialize()


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    flags = cli.parse(
        ExportConfig,
        argv,
        prog="python -m jaxcifar.export",
        description="Writes trained weights as a torch or safetensors file, or as a StableHLO"
        " program that jax runs without jaxcifar.",
    )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # so that the program is the same everywhere
    print(export(ExportConfig(**flags)))


if __name__ == "__main__":
    cli.run(main, prog="jaxcifar.export")
