"""Train as ``jaxcifar train`` does, in torch: ``torch_recipe.py --workdir DIR`` and its options.

The same data, held-out images, augmentation, initialisation, Adam, schedule and precision; the
random numbers are torch's. Writes ``config.json`` and ``metrics.jsonl`` as a run does.
"""

import os
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad

from jaxcifar import TrainConfig, cli, data
from jaxcifar.core.augment import CROP_PADDING, MEAN, STD
from jaxcifar.files.run import MetricWriter, RunDirectory
from jaxcifar.porting.torch_models import create_torch_model
from jaxcifar.runtime import process


def initialise(module: nn.Module, model: str) -> None:
    """Draw the weights as the original program does; torch's defaults have been drawn."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and model != "resnet50_layer4":
            kernel = layer.kernel_size[0] * layer.kernel_size[1]
            nn.init.normal_(layer.weight, std=(2 / (kernel * layer.out_channels)) ** 0.5)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Conv2d | nn.Linear) and model == "resnet50_layer4":
            nn.init.xavier_uniform_(layer.weight)


def crop_and_flip(images: torch.Tensor) -> torch.Tensor:
    """Crop each image ``(N, 3, 32, 32)`` of its own corner in a border of zeros; mirror half."""
    count = len(images)
    padded = pad(images, [CROP_PADDING] * 4)
    top, left = torch.randint(0, 2 * CROP_PADDING + 1, (2, count, 1, 1))
    rows, columns = top + torch.arange(32).view(1, 32, 1), left + torch.arange(32).view(1, 1, 32)
    mirrored = torch.rand(count, 1, 1) < 0.5
    columns = torch.where(mirrored, columns.flip(2), columns)
    return padded[torch.arange(count).view(-1, 1, 1, 1), torch.arange(3).view(1, 3, 1, 1),
                  rows[:, None], columns[:, None]]  # fmt: skip


def main() -> None:
    """Train, and print what ``jaxcifar train`` prints."""
    config = TrainConfig(**vars(cli.make_parser("train").parse_args()))
    torch.manual_seed(config.seed)
    dataset = data.load(config.dataset, config.data_dir)
    splits = data.hold_out(dataset.train, config.val_fraction)
    (images, labels), val = (
        (torch.from_numpy(split.images).permute(0, 3, 1, 2), torch.from_numpy(split.labels).long())
        for split in splits
    )
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    def normalise(pixels: torch.Tensor) -> torch.Tensor:
        pixels = (pixels / 255 - mean) / std
        return pixels.contiguous(memory_format=torch.channels_last)

    module = create_torch_model(config.model, dropout=config.dropout_rate)
    initialise(module, config.model)
    module = module.to(memory_format=torch.channels_last)
    rate = config.learning_rate or 1e-3
    options = {"lr": rate, "weight_decay": config.weight_decay}
    adam = torch.optim.AdamW(module.parameters(), fused=True, **options)
    steps = len(labels) // config.batch_size
    warmup, decay = config.warmup_epochs * steps, config.decay_epochs * steps

    def factor(step: int) -> float:
        return config.decay_rate ** (step // decay) * min(1, (step + 1) / max(warmup, 1))

    schedule = torch.optim.lr_scheduler.LambdaLR(adam, factor)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16")
    run = RunDirectory.for_run(config)
    run.path.mkdir(parents=True, exist_ok=True)
    versions = process.versions("torch")
    run.write_config(config, {**process.describe(), "versions": versions})
    metrics = MetricWriter(run, 0)
    for epoch in range(config.epochs):
        place = f"Epoch [{epoch + 1}/{config.epochs}]"
        module.train()
        loss_sum, start = torch.zeros(()), time.monotonic()
        batches = torch.randperm(len(labels)).split(config.batch_size)[:steps]
        for done, indices in enumerate(batches, start=1):
            with autocast:
                logits = module(normalise(crop_and_flip(images[indices]))).float()
            loss = cross_entropy(logits, labels[indices])
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
            loss_sum += loss.detach()
            if done % config.log_every == 0 or done == steps:
                epoch_loss = float(loss_sum) / done
                print(f"{place}, Step [{done}/{steps}] Loss: {epoch_loss:.4f}", flush=True)
                speed = done * config.batch_size / (time.monotonic() - start)
                values = {"epoch": epoch + 1, "loss": epoch_loss, "images_per_second": speed}
                metrics.write(epoch * steps + done, "train", **values)
        module.eval()
        with torch.inference_mode(), autocast:
            logits = torch.cat([module(normalise(part)).float() for part in val[0].split(500)])
        accuracy = float((logits.argmax(1) == val[1]).float().mean())
        print(f"{place}, validation accuracy: {100 * accuracy:.2f} %", flush=True)
        values = {"epoch": epoch + 1, "images": len(val[1]), "accuracy": accuracy}
        values["loss"] = float(cross_entropy(logits, val[1]))
        metrics.write((epoch + 1) * steps, "val", **values)
    metrics.close()


if __name__ == "__main__":
    main()
