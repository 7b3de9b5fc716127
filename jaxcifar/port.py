"""Port weights from torch to Flax or back, and verify that they are the same.

    jaxcifar port vgg16_epoch250.ckpt vgg16_flax
    jaxcifar port vgg16_flax vgg16.ckpt

The output appears only when all checks have passed.
"""

if __name__ == "__main__":  # python -m jaxcifar.port
    from jaxcifar import cli

    cli.run("port")

import importlib.util
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcifar import data
from jaxcifar.config import PortConfig
from jaxcifar.core.augment import MEAN, STD, normalize
from jaxcifar.errors import UserError
from jaxcifar.files import atomic, torch_names, weights
from jaxcifar.files.digest import digest, sha256
from jaxcifar.porting import compare
from jaxcifar.runtime import environment

PACKAGES = (*environment.PACKAGES, "torch", "safetensors")
NUM_RANDOM_IMAGES = 16
NUM_TEST_IMAGES = 48

log = logging.getLogger(__name__)


def main(config: PortConfig) -> None:
    """Run the command."""
    if not jax.config.jax_platforms:
        jax.config.update("jax_platforms", "cpu")  # the tolerances are those of full float32
    port(config)


def port(config: PortConfig) -> dict[str, Any]:
    """Port, verify and write, and return the report; a ``UserError`` leaves nothing behind."""
    source, target = Path(config.input), Path(config.output)
    _check_places(config)
    target_format = config.to or weights.format_of(target)
    with _reader_log(shown=True) as records:
        loaded = weights.load(source, model=config.model, ema=config.ema, optimizer=True)
    tensors = torch_names.torch_view(loaded.variables)
    dtypes, digests = loaded.torch_dtypes, loaded.source_digests
    parameters = sum(a.size for key, a in tensors.items() if key.endswith(("weight", "bias")))
    print(
        f"{source} is {loaded.model} with {loaded.num_classes} classes: {len(tensors)} tensors,"
        f" {parameters:,} parameters"
    )
    nonfinite = [key for key, array in tensors.items() if not np.isfinite(array).all()]
    if nonfinite:
        log.warning("%s: not all finite: %s", source, ", ".join(nonfinite))
    origin = {
        "source": {"path": str(source), "sha256": None if source.is_dir() else sha256(source)},
        "normalization": {"mean": MEAN, "std": STD},
    }
    report = {
        "input": origin["source"],
        "output": {"path": str(target), "format": target_format},
        "model": loaded.model,
        "num_classes": loaded.num_classes,
        "tensors": len(tensors),
        "parameters": parameters,
        "adam_steps": None if loaded.adam is None else int(loaded.adam.count),
        "notes": [record.getMessage() for record in records],
        "nonfinite": nonfinite,
        "normalization": origin["normalization"],
        "versions": environment.versions(PACKAGES),
    }

    def verify(loaded: weights.Weights) -> None:
        back = torch_names.torch_view(loaded.variables)
        changed = [
            key
            for key, (dtype, expected) in digests.items()
            if digest(torch_names.cast(key, back[key], dtype)) != expected
        ]
        if changed or loaded.torch_dtypes != dtypes:
            raise UserError(f"{', '.join(changed)} came back changed: please report this bug")
        print(f"round trip: {len(back)} of {len(digests)} tensors bit-identical")
        report["verification"] = _compare(config, loaded)

    if config.dry_run:
        verify(loaded)
        print("dry run: nothing written")
    else:
        with atomic.replacing(target) as new:
            weights.write(new, loaded, target_format, origin)
            del loaded, tensors  # they need not stay in memory
            with _reader_log(shown=False):
                back = weights.load(new)
            verify(back)
        print(f"wrote {target} ({target_format})")
        if report["adam_steps"] is not None and target_format != "orbax":
            print("  without Adam's moments: only an Orbax checkpoint keeps them")
    if config.report:
        atomic.write_text(Path(config.report), json.dumps(report, indent=2, allow_nan=False) + "\n")
    return report


@contextmanager
def _reader_log(*, shown: bool) -> Iterator[list[logging.LogRecord]]:
    """Collect what the readers of files log, and pass it on if it is to be shown."""
    reader, handler = logging.getLogger("jaxcifar.files"), BufferingHandler(capacity=10**6)
    before = reader.level, reader.propagate
    reader.addHandler(handler)
    reader.level, reader.propagate = logging.INFO, shown
    try:
        yield handler.buffer
    finally:
        reader.removeHandler(handler)
        reader.level, reader.propagate = before


def _check_places(config: PortConfig) -> None:
    """Refuse to write over something, or nowhere, before any work is done."""
    source, output = Path(config.input), Path(config.output)
    force = config.force or config.dry_run
    atomic.check_output(output, source=source, force=force, checkpoint=True)
    if config.report:
        report = Path(config.report)
        atomic.check_output(report, source=source, force=config.force)
        if report.resolve() == output.resolve():
            raise UserError(f"{output} cannot be the output and the report: choose another name")


def _compare(config: PortConfig, loaded: weights.Weights) -> dict[str, Any] | None:
    """Compare with torch on some images, and return what the report says of it."""
    if not config.verify:
        return None
    if importlib.util.find_spec("torch") is None:
        if config.against:
            raise UserError("--against needs torch 2.6 or newer: install it")
        print("not verified against torch, which is not installed")
        return None
    images = np.random.default_rng(0).integers(0, 256, (NUM_RANDOM_IMAGES, 32, 32, 3), np.uint8)
    if config.data_dir is not None:
        examples = data.load("cifar10", config.data_dir).test
        images = np.concatenate([images, examples.images[:NUM_TEST_IMAGES]])
    module = compare.torch_module(loaded, config.against)
    rows = compare.compare(loaded, module, np.asarray(normalize(images)))
    names = {row.name for row in rows}
    if compare.LOGITS not in names:
        raise UserError("torch's model gives no single tensor of logits: nothing was written")
    print(compare.table(rows))
    unseen = sorted(compare.layers(loaded) - names)
    if unseen:
        print(f"not compared, as torch does not call them as layers: {', '.join(unseen)}")
    if not rows[-1].largest:
        log.warning("no logit is finite and not 0: the comparison proves little")
    bad = [row for row in rows if not row.equal]
    if bad:
        worst = max(bad, key=lambda row: row.relative)
        raise UserError(
            f"{len(bad)} of {len(rows)} outputs differ from torch's, first {bad[0].name}, most"
            f" {worst.name} by {worst.relative:.1e} of its largest value: nothing was written"
        )
    print(
        f"verified against {config.against or 'torch'} on {len(images)} images: {len(rows) - 1}"
        f" layers within {compare.LAYER_TOLERANCE:g}, logits within {compare.LOGITS_TOLERANCE:g}"
    )
    return {
        "against": config.against or "the built-in torch model",
        "images": {"random": NUM_RANDOM_IMAGES, "test": len(images) - NUM_RANDOM_IMAGES},
        "not_compared": unseen,
        "largest": max(row.relative for row in rows),
        "layers": [{**row._asdict(), "relative": row.relative} for row in rows],
    }
