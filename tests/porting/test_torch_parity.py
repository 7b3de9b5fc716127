"""Outputs, gradients and training steps equal torch's, with random weights and statistics.

The weights go through the port; results are compared by ``torch_reference.to_flax``, our own map.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxcifar.core import steps
from jaxcifar.core.augment import normalize
from jaxcifar.core.layers import Dropout
from jaxcifar.core.models import MODELS, create_model
from jaxcifar.core.state import make_optimizer, make_schedule, state_from
from jaxcifar.files import torch_names

torch = pytest.importorskip("torch", reason="torch is not installed")
from jaxcifar.files.weights import Weights  # noqa: E402
from jaxcifar.porting import compare  # noqa: E402
from jaxcifar.porting.torch_models import create_torch_model  # noqa: E402
from tests.porting import torch_reference  # noqa: E402

BATCH, STEPS, DECAY_STEPS = 8, 20, 10
LEARNING_RATE = 1e-5  # docs/from_pytorch.md says why not 1e-3
KEY = jax.random.key(7)


@pytest.fixture(autouse=True)
def plain_sums():
    """No algorithm whose rounding differs from a plain sum's; ``test_conv`` bounds those."""
    with jax.default_matmul_precision("highest"):
        yield


def variables(state):
    return {"params": state.params, "batch_stats": state.batch_stats}


def channels_first(array):
    return torch.tensor(np.array(array).transpose(0, 3, 1, 2) if array.ndim == 4 else array)


def pair(name, dtype, *, dropout=0.0, learning_rate=1e-3):
    """The same weights in torch and in a train state."""
    module = torch_reference.randomize(create_torch_model(name, dropout=dropout).to(dtype))
    model = create_model(name, dropout_rate=dropout, dtype=str(dtype).removeprefix("torch."))
    weights = torch_names.to_flax(module.state_dict(), model)
    return module.train(), state_from(weights, model, make_optimizer(learning_rate))


def draw(rng):
    """uint8 images and labels."""
    return steps.Examples(
        jnp.asarray(rng.integers(0, 256, (BATCH, 32, 32, 3), np.uint8)),
        jnp.asarray(rng.integers(0, 10, BATCH), jnp.int32),
    )


def torch_loss(module, batch, dtype):
    labels = torch.tensor(np.asarray(batch.labels)).long()
    pixels = channels_first(normalize(batch.images, dtype))
    return torch.nn.functional.cross_entropy(module(pixels), labels)


def worst(tree, expected):
    """The largest difference of two trees, relative to its own leaf's largest value, and where.

    The gradient of a bias that the following batch norm cancels is 0, and what is computed of
    it is rounding, in both programs: it is measured against the gradient of its kernel.
    """
    tree, expected = flatten_dict(tree), flatten_dict(expected)
    assert tree.keys() == expected.keys()
    differences = []
    for path, leaf in expected.items():
        *layers, index, name = path
        following = (*layers, str(int(index) + 1), "scale") if index.isdigit() else None
        cancelled = name == "bias" and following in expected
        scale = np.abs(expected[(*layers, index, "kernel")] if cancelled else leaf).max()
        difference = float(np.abs(tree[path] - leaf).max())
        assert np.isfinite(difference), path
        differences.append((float(difference / scale) if difference else 0.0, path))
    return max(differences)


def assert_gradients_equal(module, state, batch, dtype, *, loss_bound, bound):
    """The loss, gradients and new statistics of one training batch are ours and torch's."""
    expected_loss = torch_loss(module, batch, dtype)
    expected_loss.backward()
    results = {n: p.grad for n, p in module.named_parameters()} | dict(module.named_buffers())
    grad_fn = jax.jit(jax.value_and_grad(steps.loss_fn, has_aux=True))
    images = normalize(batch.images, dtype)
    (loss, (_, stats)), grads = grad_fn(state.params, state, images, batch.labels, KEY)
    assert float(loss) == pytest.approx(expected_loss.item(), rel=loss_bound)
    ours = {"params": grads, "batch_stats": stats}
    assert worst(ours, torch_reference.to_flax(results, module)) <= (bound,)


@pytest.mark.parametrize("name", MODELS)
def test_float32_outputs_equal_torch(name, rng):
    """Every layer and block within 1e-4 of its largest value, the logits within 2e-5."""
    module, state = pair(name, torch.float32)
    loaded = Weights(name, 10, variables(state))
    rows = compare.compare(loaded, module.eval(), rng.standard_normal((8, 32, 32, 3), np.float32))
    assert {row.name for row in rows} > compare.layers(loaded)
    assert all(row.relative <= 1e-4 and np.isfinite(row.largest) for row in rows)
    assert rows[-1].name == "logits"
    assert rows[-1].relative <= 2e-5


@pytest.mark.parametrize("name", MODELS)
def test_default_algorithms_stay_near_torch(name, rng):
    """With Winograd's convolutions, as a user runs it, the logits are within 2e-5, too."""
    module, state = pair(name, torch.float32)
    images = rng.standard_normal((8, 32, 32, 3), np.float32)
    with jax.default_matmul_precision(None):
        logits = jax.jit(partial(state.apply_fn, train=False))(variables(state), images)
    expected = module.eval()(channels_first(images)).detach().numpy()
    assert np.abs(logits - expected).max() <= 2e-5 * np.abs(expected).max()


class SameSide(torch.nn.Module):
    """Wraps ReLU or MaxPool2d, to take the side of each kink that our layer takes.

    Their derivatives jump. A few of a million values are so near to a jump that rounding
    decides, and one that decides otherwise changes its channel's gradient by percents. So the
    choice follows our layer's inputs, after a check that only rounding was in question.
    """

    def __init__(self, layer, inputs):
        super().__init__()
        self.layer, self.inputs = layer, inputs

    def forward(self, x):
        if isinstance(self.layer, torch.nn.ReLU):
            y = x * (self.inputs > 0)
        else:
            options = (self.layer.kernel_size, self.layer.stride, self.layer.padding)
            max_pool = torch.nn.functional.max_pool2d
            _, chosen = max_pool(self.inputs, *options, return_indices=True)
            y = x.flatten(2).gather(2, chosen.flatten(2)).view(chosen.shape)
        assert (y - self.layer(x)).abs().max() <= 1e-5 * x.abs().max()
        return y


@partial(jax.jit, static_argnames="capture")
def training_outputs(state, images, key, capture=True):
    """What the layers give in training."""
    mutable = ["batch_stats", "intermediates"]
    options = {"rngs": {"dropout": key}, "capture_intermediates": capture, "mutable": mutable}
    _, updates = state.apply_fn(variables(state), images, train=True, **options)
    return flatten_dict(updates["intermediates"])


@pytest.mark.parametrize("name", MODELS)
def test_float32_gradients_equal_torch(name, rng):
    module, state = pair(name, torch.float32)
    batch = draw(rng)
    outputs = training_outputs(state, normalize(batch.images, np.float32), KEY)
    for layer_name, layer in list(module.named_modules()):
        if isinstance(layer, torch.nn.ReLU | torch.nn.MaxPool2d):
            *path, index = layer_name.split(".")
            before = channels_first(outputs[(*path, str(int(index) - 1), "__call__")][0])
            setattr(module.get_submodule(".".join(path)), index, SameSide(layer, before))
    assert_gradients_equal(module, state, batch, np.float32, loss_bound=1e-5, bound=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_float64_gradients_and_statistics_equal_torch(name, rng):
    with jax.enable_x64(True):
        options = {"loss_bound": 1e-12, "bound": 1e-11}
        assert_gradients_equal(*pair(name, torch.float64), draw(rng), np.float64, **options)


class Masked(torch.nn.Module):
    """Dropout whose mask is given from outside, already scaled."""

    def forward(self, x):
        return x * self.mask


def is_dropout(layer, _):
    return isinstance(layer, Dropout)


def take_our_masks(module, state, batch, dropout):
    """Drop in torch what our next train step drops."""
    _, key = jax.random.split(jax.random.fold_in(KEY, state.step))
    images = normalize(batch.images, np.float64)
    outputs = training_outputs(state, images, key, capture=is_dropout)
    for (_, index, _), (output,) in outputs.items():
        # Where the input is 0, as is what ReLU cuts, mask and gradient do not count.
        module.classifier[int(index)].mask = torch.tensor(np.asarray(output) != 0) / (1 - dropout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dropout"),
    [("vgg16", 0.0), ("vgg16", 0.5), ("vgg16_bn", 0.0), ("resnet50_layer4", 0.0)],
)
@jax.enable_x64(True)
def test_twenty_float64_training_steps_equal_torch(name, dropout, rng):
    """The proof: losses within 1e-10, all that training leaves within 1e-9."""
    schedule = make_schedule(LEARNING_RATE, decay_rate=1 / 3, decay_steps=DECAY_STEPS)
    module, state = pair(name, torch.float64, dropout=dropout, learning_rate=schedule)
    before = jax.tree.map(np.array, state.params)
    if dropout:
        module.classifier[0], module.classifier[4] = Masked(), Masked()
    adam = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)
    decay = torch.optim.lr_scheduler.StepLR(adam, DECAY_STEPS, gamma=1 / 3)
    train_step = jax.jit(steps.train_step, donate_argnums=0)
    for _ in range(STEPS):
        batch = draw(rng)
        if dropout:
            take_our_masks(module, state, batch, dropout)
        adam.zero_grad()
        loss = torch_loss(module, batch, np.float64)
        loss.backward()
        adam.step()
        decay.step()
        state, metrics = train_step(state, batch, KEY)
        assert float(metrics.loss_sum) / BATCH == pytest.approx(loss.item(), rel=1e-10)

    ours = state.opt_state[0]
    assert ours.count == STEPS
    mu, nu = torch_reference.moments(adam, module)
    expected = torch_reference.to_flax(module.state_dict(), module)
    assert worst(variables(state), expected) <= (1e-9,)
    assert worst({"mu": ours.mu, "nu": ours.nu}, {"mu": mu, "nu": nu}) <= (1e-9,)
    moved, _ = worst(jax.tree.map(np.asarray, state.params), before)
    assert moved > 1e-4  # the steps did something
