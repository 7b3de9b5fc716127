"""The programs to compare: each prepares one task and returns a function of steps.

``prepare(task, model, precision, batch_size)`` returns ``run(steps)``, which does that many
steps and waits for the last. Tasks: ``train`` (a step on a batch in memory), ``evaluate``
(logits of a batch), ``epoch`` (a step of the training loop: take the next batch, augment,
normalize, train).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Run = Callable[[int], None]
IMAGES = 5000  # so that successive batches differ
# As in jaxcifar.core.augment, which imports JAX: that would count as torch's memory.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def draw() -> tuple[np.ndarray, np.ndarray]:
    """Return random images and labels, on which speed does not depend."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
    return images, rng.integers(0, 10, IMAGES).astype(np.int32)


def prepare_jaxcifar(task: str, model: str, precision: str, batch_size: int) -> Run:
    """jaxcifar, by the functions that its training loop calls."""
    import jax

    from jaxcifar.core import state, steps
    from jaxcifar.core.augment import Augmentation
    from jaxcifar.core.inference import forward, rounded
    from jaxcifar.core.models import create_model
    from jaxcifar.runtime import process

    net = create_model(model, dtype=precision)
    schedule = state.make_schedule(1e-3, decay_rate=1 / 3, decay_steps=10_000)
    train_state = state.create_state(state.host_key(0), net, state.make_optimizer(schedule))
    examples = jax.device_put(steps.Examples(*draw()))
    totals = steps.Metrics.zeros()
    if task == "evaluate":
        images = examples.images[:batch_size]
        train_state = rounded(train_state, images)

        def evaluate(count: int) -> None:
            for _ in range(count):
                jax.block_until_ready(forward(train_state, images))

        return evaluate
    order = state.epoch_order(jax.random.key(1), 0, examples=IMAGES, batch_size=batch_size)
    key = jax.random.key(2)

    on_cpu = process.computes_on_cpu()
    augment: Augmentation = "crop-flip" if task == "epoch" else "none"
    if on_cpu:
        inputs = train_state, totals, examples, order, key
        steps.train_steps_at.lower(*inputs, augment=augment, count=1).compile()
        process.keep_freed()

    def train(count: int) -> None:
        nonlocal train_state, totals
        for _ in range(count if on_cpu else 1):
            train_state, totals = steps.train_steps_at(
                *(train_state, totals, examples, order, key),
                augment=augment,
                count=1 if on_cpu else count,
            )
            jax.block_until_ready(totals)

    return train


def prepare_stock(task: str, model: str, precision: str, batch_size: int) -> Run:
    """A port with Flax's own layers, on a normalized batch."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax_models import STOCK_MODELS

    net = STOCK_MODELS[model](jnp.dtype(precision))
    images, labels = draw()
    batch = jnp.asarray(images[:batch_size] / np.float32(255)), jnp.asarray(labels[:batch_size])
    variables = jax.jit(lambda key, x: net.init(key, x, train=False))(jax.random.key(0), batch[0])
    params, stats = variables["params"], variables["batch_stats"]
    if task == "evaluate":
        logits = jax.jit(lambda variables, x: net.apply(variables, x, train=False))

        def evaluate(count: int) -> None:
            for _ in range(count):
                result = logits(variables, batch[0])
            jax.block_until_ready(result)

        return evaluate
    if task == "epoch":
        raise NotImplementedError
    optimizer = optax.adam(1e-3)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params: Any, stats: Any, opt_state: Any, key: Any) -> Any:
        def loss_fn(params: Any) -> Any:
            logits, updates = net.apply(
                {"params": params, "batch_stats": stats},
                batch[0],
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits.astype(jnp.float32), batch[1]
            )
            return losses.mean(), updates["batch_stats"]

        (loss, stats_), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), stats_, opt_state, loss

    def train(count: int) -> None:
        nonlocal params, stats, opt_state
        for index in range(count):
            params, stats, opt_state, loss = step(params, stats, opt_state, jax.random.key(index))
        jax.block_until_ready(loss)

    return train


def prepare_torch(
    task: str, model: str, precision: str, batch_size: int, *, compiled: bool = False
) -> Run:
    """Torch in its fastest fair setting: channels_last, autocast for bfloat16, fused Adam."""
    import torch

    from jaxcifar.porting.torch_models import create_torch_model

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net: Any = create_torch_model(model).to(device, memory_format=torch.channels_last)
    net.train(task != "evaluate")
    forward = torch.compile(net) if compiled else net
    images, labels = draw()
    normalize = Normalize()
    pixels = torch.stack([normalize(image) for image in images[:batch_size]])
    pixels = pixels.to(device, memory_format=torch.channels_last)
    targets = torch.from_numpy(labels[:batch_size]).long().to(device)
    autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    if task == "evaluate":

        def evaluate(count: int) -> None:
            with torch.inference_mode(), autocast:
                for _ in range(count):
                    forward(pixels)
            wait()

        return evaluate
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)

    def step(pixels: Any, targets: Any) -> None:
        with autocast:
            loss = torch.nn.functional.cross_entropy(forward(pixels), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    if task == "train":

        def train(count: int) -> None:
            for _ in range(count):
                step(pixels, targets)
            wait()

        return train

    loader = load_one_by_one(images, labels, batch_size)

    def epoch(count: int) -> None:
        for _ in range(count):
            x, y = next(loader)
            step(x.to(device, memory_format=torch.channels_last), y.to(device))
        wait()

    return epoch


class Normalize:
    """``ToTensor`` and ``Normalize`` of one image, as torchvision computes them."""

    def __init__(self) -> None:
        import torch

        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))

    def __call__(self, image: Any) -> Any:
        """Map uint8 ``(32, 32, 3)`` to float32 ``(3, 32, 32)``."""
        import torch

        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return tensor.to(torch.float32).div(255).sub_(self.mean).div_(self.std)


def load_one_by_one(images: np.ndarray, labels: np.ndarray, batch_size: int) -> Any:
    """The original's loader in one process, which crops, flips and normalizes image by image."""
    import torch
    from PIL import Image, ImageOps

    normalize = Normalize()
    while True:
        order = torch.randperm(len(images)).tolist()
        for start in range(0, len(order) - batch_size + 1, batch_size):
            batch = []
            for index in order[start : start + batch_size]:
                image = ImageOps.expand(Image.fromarray(images[index]), border=4, fill=0)
                top, left = torch.randint(0, 9, (2,)).tolist()
                image = image.crop((left, top, left + 32, top + 32))
                if torch.rand(1) < 0.5:
                    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                batch.append((normalize(image), labels[index]))
            pixels, targets = zip(*batch, strict=True)
            yield torch.stack(pixels), torch.tensor(targets).long()


def prepare_torch_compiled(task: str, model: str, precision: str, batch_size: int) -> Run:
    """``prepare_torch`` through ``torch.compile``."""
    return prepare_torch(task, model, precision, batch_size, compiled=True)


PROGRAMS: dict[str, Callable[[str, str, str, int], Run]] = {
    "torch": prepare_torch,
    "torch.compile": prepare_torch_compiled,
    "stock flax": prepare_stock,
    "jaxcifar": prepare_jaxcifar,
}
