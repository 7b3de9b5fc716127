"""Port weights from torch to Flax or back; write them only when all checks have passed."""

if __name__ == "__main__":  # python -m jaxcifar.port
    from jaxcifar import cli

    cli.main("port")

import importlib.util
import json
import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epy

from jaxcifar import data
from jaxcifar.config.commands import VERIFY_IMAGES, PortConfig
from jaxcifar.core.augment import MEAN, STD, normalize
from jaxcifar.core.models import MODELS
from jaxcifar.errors import UserError, log, one_line
from jaxcifar.files import atomic, torch_names, weights
from jaxcifar.files.checkpoints import digest
from jaxcifar.porting import compare
from jaxcifar.runtime import process

with epy.lazy_imports():
    import pooch

RANDOM_IMAGES = 16


def main(config: PortConfig) -> None:
    """Port, verify and write; a ``UserError`` leaves nothing behind."""
    process.start(prefer_cpu=True)  # the tolerances are those of full float32
    source, target = weights.resolve(config.checkpoint, config.model), Path(config.output)
    atomic.check_output(target, source=source, force=config.force or config.dry_run)
    if config.report:
        atomic.check_output(Path(config.report), source=source, force=config.force)
        if Path(config.report).resolve() == target.resolve():
            raise UserError(f"{target} cannot be the output and the report: choose another name")
    target_format = weights.format_of(target)
    load = partial(weights.load, input_shape=config.input_shape)
    loaded = load(source, **config.chosen, optimizer=True)
    tensors = torch_names.torch_view(loaded.variables)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(loaded.variables["params"]))
    counts = f"{len(tensors)} tensors, {parameters:,} parameters"
    print(f"{one_line(str(source))} is {loaded.model} with {loaded.num_classes} classes: {counts}")
    name, dtypes, read = loaded.model, loaded.torch_dtypes, loaded.source
    if unusual := [dtype for dtype in dtypes.values() if dtype not in ("", "float32", "int64")]:
        taken = f"{len(unusual)} tensors of {', '.join(sorted({*unusual}))}"
        print(f"  took {taken} into the model's dtypes, unchanged in value")
    if nonfinite := [key for key, array in tensors.items() if not np.isfinite(array).all()]:
        log.warning("%s: not all finite: %s", source, ", ".join(nonfinite))
    file_hash = None if source.is_dir() else pooch.file_hash(source)
    report = {
        "input": {"path": str(source), "sha256": file_hash},
        "output": {"path": str(target), "format": target_format},
        "model": loaded.model,
        "num_classes": loaded.num_classes,
        "tensors": len(tensors),
        "parameters": parameters,
        "adam_steps": None if loaded.adam is None else int(loaded.adam.count),
        "nonfinite": nonfinite,
        "normalization": {"mean": MEAN, "std": STD},
        "versions": process.versions("torch", "safetensors"),
    }
    with nullcontext() if config.dry_run else atomic.replacing(target) as new:
        if new is not None:
            metadata = {"source": report["input"], "normalization": report["normalization"]}
            weights.write(new, loaded, target_format, metadata)
            del loaded, tensors  # they need not stay in memory
            loaded = load(new, model=name)
        tensors = torch_names.torch_view(loaded.variables)
        casts = {key: torch_names.convert(tensors[key], read[key].dtype)[0] for key in read}
        changed = [key for key in read if digest(casts[key]) != digest(read[key])]
        if changed or (dtypes and loaded.torch_dtypes != dtypes):
            raise UserError(f"{', '.join(changed)} came back changed: please report this bug")
        print(f"round trip: {len(read)} of {len(read)} tensors bit-identical")
        report["verification"] = _compare(config, loaded) if config.verify else None
    wrote = one_line(f"wrote {target} ({target_format})")
    print("dry run: nothing written" if config.dry_run else wrote)
    if report["adam_steps"] is not None and target_format != "orbax" and not config.dry_run:
        print("  without Adam's moments: only an Orbax checkpoint keeps them")
    if config.report:
        atomic.write_text(Path(config.report), json.dumps(report, indent=2, allow_nan=False) + "\n")


def _compare(config: PortConfig, loaded: weights.Weights) -> dict[str, Any] | None:
    """Compare every layer with torch's, and return what the report says of it."""
    if config.against is None and importlib.util.find_spec("torch") is None:
        print("not verified against torch, which is not installed")
        return None
    if config.against is None and loaded.model not in MODELS:
        print("not verified: --against names the torch class to compare with")
        return None
    shape = config.input_shape
    count = RANDOM_IMAGES if math.prod(shape) < 20_000 else 4  # all outputs are kept in memory
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
    if config.data_dir is not None:
        examples = data.load("cifar10", config.data_dir, test_only=True).test
        images = np.concatenate([images, examples.images[:VERIFY_IMAGES]])
    module = compare.torch_module(loaded, config.against)
    images = np.asarray(normalize(jnp.asarray(images)))
    rows, mistake = compare.compare(loaded, module, images)
    if config.train_step and all(row.equal for row in rows):
        trained, mistake = compare.compare_training(loaded, module, images)
        rows = [*trained, *rows]  # the logits stay the last
    names = {row.name for row in rows}
    if compare.LOGITS not in names:
        raise UserError("torch's model gives no single tensor of logits: nothing was written")
    print(compare.table(rows))
    layers = {key.rpartition(".")[0] for key in torch_names.torch_view(loaded.variables)}
    if unseen := sorted(layers - names):
        print(f"not compared, as torch does not call them as layers: {', '.join(unseen)}")
    if infinite := [row.name for row in rows if not math.isfinite(row.largest)]:
        problem = f"in torch, {infinite[0]} gives NaN or infinity: nothing was written"
        raise UserError(f"{problem}; train again, or port it with --no-verify")
    if bad := [row for row in rows if not row.equal]:
        worst = max(bad, key=lambda row: row.relative)
        problem = f"{len(bad)} of {len(rows)} outputs differ from torch's, first {bad[0].name}"
        most = f"most {worst.name} by {worst.relative:.1e} of its largest value"
        looks = f"; it looks like this: {mistake}" if mistake else ""
        raise UserError(f"{problem}, {most}{looks}: nothing was written")
    layer, logits = f"{compare.LAYER_TOLERANCE:g}", f"{compare.LOGITS_TOLERANCE:g}"
    limits = f"{len(rows) - 1} layers within {layer}, logits within {logits}"
    print(f"verified against {config.against or 'torch'} on {len(images)} images: {limits}")
    return {
        "against": config.against or "the built-in torch model",
        "images": {"random": count, "test": len(images) - count},
        "not_compared": unseen,
        "largest": max(row.relative for row in rows),
        "layers": [row._asdict() for row in rows],
    }
