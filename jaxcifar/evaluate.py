"""Scores of weights on test images: ``jaxcifar evaluate``, or ``evaluate(config)``."""

if __name__ == "__main__":  # python -m jaxcifar.evaluate
    from jaxcifar import cli

    cli.main("evaluate")

import dataclasses
import json
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxcifar import data
from jaxcifar.config.commands import EvaluateConfig
from jaxcifar.core import inference, sharding
from jaxcifar.core.state import TrainState
from jaxcifar.errors import one_line
from jaxcifar.files import weights
from jaxcifar.reporting.scores import Evaluation, score, table
from jaxcifar.runtime import process


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Score weights on the test images of ``dataset``, by default the run's, else CIFAR-10."""
    loaded = weights.load(config.checkpoint, **config.chosen)
    name = config.dataset or loaded.dataset or "cifar10"
    _, test, class_names = data.load(name, config.data_dir, test_only=True)
    loaded.check_classes(config.checkpoint, name, class_names)
    mesh = sharding.make_mesh()
    state = sharding.put(loaded.state(), sharding.replicated(mesh))
    process.keep_freed()
    logits = test_logits(state, test.images, False, batch_size=config.batch_size, mesh=mesh)
    scores = score(logits, test.labels, class_names)
    return Evaluation(loaded.model, name, test, class_names, logits, scores)


def test_logits(state: TrainState, images: np.ndarray, silent: bool, **options: Any) -> np.ndarray:
    """Return ``logits(..., **options)``; a bar shows in a terminal unless ``silent``."""
    with tqdm(total=len(images), unit=" images", leave=False, disable=silent or None) as bar:
        return inference.logits(state, images, on_batch=bar.update, **options)


def main(config: EvaluateConfig) -> None:
    """Run the command."""
    process.start(use_compile_cache=config.compile_cache)
    model, dataset, *_, scores = evaluate(config)
    if config.json:
        source = {"checkpoint": config.checkpoint, "model": model, "dataset": dataset}
        print(json.dumps(source | dataclasses.asdict(scores), indent=2))
        return
    low, high = scores.accuracy_interval
    top5 = "" if scores.top5 is None else f", top-5 {100 * scores.top5:.2f} %"
    print(one_line(f"{model} on {scores.images} test images of {dataset}"))
    print(f"Accuracy of the model on the test images: {100 * scores.accuracy:.2f} %")
    print(f"  95 % interval {100 * low:.2f} to {100 * high:.2f} %")
    print(f"Loss {scores.loss:.4f}{top5}")
    print(f"\n{table(scores)}")
