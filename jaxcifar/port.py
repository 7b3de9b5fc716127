"""Moves weights from torch to Flax and back, with proof that they are the same.

    python tools/port_torch_ckpt.py vgg16_epoch250.ckpt vgg16_flax
    python tools/port_torch_ckpt.py vgg16_flax vgg16.ckpt

Nothing appears under the second name before all checks have passed.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxcifar import cli
from jaxcifar.config import REQUIRED, ModelName, option
from jaxcifar.errors import UserError
from jaxcifar.files import atomic as outputs
from jaxcifar.runtime import environment

if TYPE_CHECKING:
    from jaxcifar.files.weights import Weights

PACKAGES = (*environment.PACKAGES, "torch", "safetensors")
RANDOM_IMAGES = 16
USER_IMAGES = 48


@dataclasses.dataclass(frozen=True, kw_only=True)
class PortConfig:
    """What is ported, and how it is proved."""

    input: str = option(
        REQUIRED,
        "a torch .ckpt/.pt/.pth, a .safetensors file, an Orbax checkpoint or a run's folder",
        positional=True,
    )
    output: str = option(
        REQUIRED,
        "what to write: a folder (Orbax), NAME.safetensors, or NAME.ckpt/.pt/.pth (torch)",
        positional=True,
    )
    to: Literal["orbax", "safetensors", "torch"] | None = option(
        None, "the format of OUTPUT (default: by its name)"
    )
    model: ModelName | None = option(None, "the network (default: by the keys and shapes)")
    ema: bool = option(False, "take the exponential moving average of the weights")
    verify: bool = option(
        True, "do not run both programs to compare all layers (that needs torch installed)"
    )
    against: str | None = option(
        None,
        "compare with your own torch class, or function, instead of the built-in one; NAME() has"
        " to give the module",
        metavar="FILE.py:NAME",
    )
    data_dir: str | None = option(
        None,
        f"compare on the first {USER_IMAGES} CIFAR-10 test images, too; where the data is, or"
        " will be downloaded to",
    )
    report: str | None = option(None, "write what was done and measured to this JSON file")
    dry_run: bool = option(False, "check and compare, and write nothing but the report")
    force: bool = option(False, "replace an existing OUTPUT and report")


def port(config: PortConfig) -> dict[str, Any]:
    """Ports, proves, writes, and returns the report.

    Raises:
      UserError: the input is bad, the output exists, or the proof fails; nothing was written.
    """
    source, target = Path(config.input), Path(config.output)
    _check_places(config)

    import numpy as np

    from jaxcifar.core import augment
    from jaxcifar.files import checksums, torch_files, weights
    from jaxcifar.files import torch_names as torch_port

    target_format = config.to or weights.format_of(target)

    loaded = weights.load(source, model=config.model, ema=config.ema)
    tensors = torch_port.torch_view(loaded.variables)
    given = tensors if source.is_dir() else torch_files.read(source, ema=config.ema).state_dict
    digests = {key: (a.dtype, _digest(a)) for key, a in given.items()}  # it need not stay in memory
    dtypes = loaded.torch_dtypes
    parameters = sum(a.size for key, a in tensors.items() if key.endswith(("weight", "bias")))
    print(
        f"{source} is {loaded.model} with {loaded.num_classes} classes: {len(tensors)} tensors,"
        f" {parameters:,} parameters"
    )
    for note in loaded.all_notes:
        print(f"  {note}")
    del given
    nonfinite = [key for key, a in tensors.items() if not np.isfinite(a).all()]
    if nonfinite:
        print(f"warning: not all finite: {', '.join(nonfinite)}", file=sys.stderr)
    report = {
        "input": {
            "path": str(source),
            "sha256": None if source.is_dir() else checksums.sha256(source),
        },
        "output": {"path": str(target), "format": target_format},
        "model": loaded.model,
        "num_classes": loaded.num_classes,
        "tensors": len(tensors),
        "parameters": parameters,
        "adam_steps": None if loaded.adam is None else int(loaded.adam.count),
        "notes": list(loaded.all_notes),
        "nonfinite": nonfinite,
        "normalization": {"mean": augment.MEAN, "std": augment.STD},
        "versions": environment.versions(PACKAGES),
    }
    info = {"source": report["input"], "normalization": report["normalization"]}

    def prove(loaded: "Weights") -> None:
        back = torch_port.torch_view(loaded.variables)
        changed = [
            key
            for key, (dtype, digest) in digests.items()
            if _digest(torch_port.cast(key, back[key], dtype)) != digest
        ]
        if changed or loaded.torch_dtypes != dtypes:
            raise UserError(f"{', '.join(changed)} came back changed: please report this bug")
        print(f"round trip: {len(back)} of {len(digests)} tensors bit-identical")
        report["verification"] = _verify(config, loaded)

    if config.dry_run:
        prove(loaded)
        print("dry run: nothing written")
    else:
        with outputs.written_aside(target) as new:
            weights.write(new, loaded, target_format, info)
            del loaded, tensors
            prove(weights.load(new))
        print(f"wrote {target} ({target_format})")
        if report["adam_steps"] is not None and target_format != "orbax":
            print("  without Adam's moments: only an Orbax checkpoint keeps them")
    if config.report:
        Path(config.report).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    return report


def _check_places(config: PortConfig) -> None:
    """Refuses to write over something, or nowhere, before any work is done."""
    source, output = Path(config.input), Path(config.output)
    report = Path(config.report) if config.report else None
    for path in [output] if report is None else [output, report]:
        outputs.require_place(path, source)
        if not (config.dry_run and path == output):
            outputs.require_free(path, force=config.force, checkpoint=path == output)
    if report and report.resolve() == output.resolve():
        raise UserError(f"{output} cannot be the output and the report: choose another name")


def _digest(array: Any) -> str:
    """A hash of a tensor's shape and bits."""
    return f"{array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def _verify(config: PortConfig, loaded: "Weights") -> dict[str, Any] | None:
    if not config.verify:
        return None
    if importlib.util.find_spec("torch") is None:
        if config.against:
            raise UserError("--against needs torch 2.6 or newer: make torch")
        print("not verified against torch, which is not installed")
        return None

    import numpy as np

    from jaxcifar import data
    from jaxcifar.core.augment import normalize
    from jaxcifar.porting import compare

    images = np.random.default_rng(0).integers(0, 256, (RANDOM_IMAGES, 32, 32, 3), np.uint8)
    if config.data_dir is not None:
        examples = data.load("cifar10", config.data_dir).test
        images = np.concatenate([images, examples.images[:USER_IMAGES]])
    module = compare.torch_module(loaded, config.against)
    rows = compare.compare(loaded, module, np.asarray(normalize(images)))
    names = {row.name for row in rows}
    if compare.LOGITS not in names:
        raise UserError("torch's model gives no single tensor of logits: nothing was written")
    print(compare.table(rows))
    unseen = compare.layers(loaded) - names
    if unseen:
        print(f"not compared, as torch does not call them as layers: {', '.join(sorted(unseen))}")
    if not rows[-1].largest:
        print("warning: no logit is finite and not 0: this proves little", file=sys.stderr)
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
        "images": {"random": RANDOM_IMAGES, "test": len(images) - RANDOM_IMAGES},
        "not_compared": sorted(unseen),
        "largest": max(row.relative for row in rows),
        "layers": [{**row._asdict(), "relative": row.relative} for row in rows],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    flags = cli.parse(
        PortConfig,
        argv,
        prog="python tools/port_torch_ckpt.py",
        description="Moves weights from torch to Flax and back, and proves that they are the same.",
    )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the tolerances are those of full float32
    port(PortConfig(**flags))


if __name__ == "__main__":
    cli.run(main, prog="port_torch_ckpt")
