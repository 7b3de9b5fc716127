"""Write ``weights/MODEL.safetensors`` from a run: ``python weights/make.py runs/NAME``.

The weights are rounded to bfloat16 before they are scored. A test needs their logits on synthetic
images, in ``check.npz``.
"""

import argparse
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pooch

from jaxcifar import data, logits
from jaxcifar.config.options import command_line
from jaxcifar.core.augment import MEAN, STD
from jaxcifar.files import torch_files, weights
from jaxcifar.files.checkpoints import digest
from jaxcifar.files.run import RunDirectory
from jaxcifar.reporting.scores import score

CHECK = Path(__file__).with_name("check.npz")


def synthetic_images() -> np.ndarray:
    """Return four smooth images, uint8 ``(4, 32, 32, 3)``."""
    y, x = np.mgrid[:32, :32] / 32
    waves = [np.sin(6 * (a * x + b * y) + a * b) for a in (1, 2, 3) for b in (0.5, 1, 2, 3)]
    return np.uint8(128 + 100 * np.stack(waves).reshape(4, 3, 32, 32)).transpose(0, 2, 3, 1)


def main() -> None:
    """Write the file and print its digest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = RunDirectory(parser.parse_args().run)
    config = run.read_config()
    output = Path(__file__).with_name(f"{config.model}.safetensors")
    tensors = weights.to_torch(weights.load(run.path))
    for key, array in tensors.items():
        if array.dtype == np.float32:
            tensors[key] = array.astype(ml_dtypes.bfloat16)
    dataset = data.load(config.dataset, config.data_dir)
    texts = {
        "model": config.model,
        "dataset": config.dataset,
        "class_names": json.dumps(dataset.class_names),
        "normalization": json.dumps({"mean": MEAN, "std": STD}),
        "recipe": command_line(config.recipe(), "jaxcifar", "train"),
        "commit": run.read_environment()["commit"],
        "sha256_of_values": digest(tensors),
    }
    torch_files.write_safetensors(output, tensors, texts)
    rounded = weights.load(output).state()
    checks = {"images": synthetic_images(), **(dict(np.load(CHECK)) if CHECK.exists() else {})}
    checks[config.model] = logits(rounded, checks["images"], batch_size=4)
    np.savez(CHECK, **checks)
    parts = {"test": dataset.test, "val": data.hold_out(dataset.train, config.val_fraction)[1]}
    for name, part in parts.items():
        scores = score(
            logits(rounded, part.images, batch_size=500), part.labels, dataset.class_names
        )
        texts[f"{name}_accuracy"] = str(scores.accuracy)
        texts[f"{name}_images"] = str(scores.images)
    torch_files.write_safetensors(output, tensors, texts)
    print(json.dumps(texts, indent=2))
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB, sha256 {pooch.file_hash(output)}")


if __name__ == "__main__":
    main()
