"""Outputs, gradients and training steps equal torch's, with random weights and statistics.

The weights go through the port; results are compared by ``torch_reference.to_flax``, our own map.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from jaxcifar.core import steps
from jaxcifar.core.augment import normalize
from jaxcifar.core.models import MODELS, create_model
from jaxcifar.core.state import make_optimizer, make_schedule, state_from
from jaxcifar.files import torch_names

torch = pytest.importorskip("torch", reason="torch is not installed")
from jaxcifar.files.weights import Weights  # noqa: E402
from jaxcifar.porting import compare  # noqa: E402
from tests.porting import torch_reference  # noqa: E402

BATCH, STEPS, DECAY_STEPS = 8, 20, 10
IMAGES = 16  # as in ``jaxcifar port``, whose tests then find a compiled program
LEARNING_RATE = 1e-5  # docs/from_pytorch.md says why not 1e-3
OPTIMIZER = make_optimizer(make_schedule(LEARNING_RATE, decay_rate=1 / 3, decay_steps=DECAY_STEPS))
KEY = jax.random.key(7)
train_step = jax.jit(steps.train_step, donate_argnums=0)  # one program for each network and dtype


@pytest.fixture(autouse=True)
def plain_sums():
    """No algorithm whose rounding differs from a plain sum's; ``test_conv`` bounds those."""
    with jax.default_matmul_precision("highest"):
        yield


def variables(state):
    return {"params": state.params, "batch_stats": state.batch_stats}


def channels_first(array):
    return torch.tensor(np.array(array).transpose(0, 3, 1, 2) if array.ndim == 4 else array)


def pair(name, dtype, *, dropout=0.0):
    """The same weights in torch and in a train state."""
    module = torch_reference.random_module(name, dropout=dropout, dtype=dtype)
    model = create_model(name, dropout_rate=dropout, dtype=str(dtype).removeprefix("torch."))
    weights = torch_names.to_flax(module.state_dict(), model)
    return module, state_from(weights, model, OPTIMIZER)


def draw(rng):
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


def assert_first_step_equals(module, state, *, bound):
    """The gradients and new statistics of one training batch are ours and torch's."""
    expected = {n: p.grad for n, p in module.named_parameters()} | dict(module.named_buffers())
    # After the first step Adam's moment is a tenth of the gradient.
    grads = jax.tree.map(lambda mu: np.asarray(mu) * 10, state.opt_state[0].mu)
    ours = {"params": grads, "batch_stats": state.batch_stats}
    assert worst(ours, torch_reference.to_flax(expected, module)) <= (bound,)


@pytest.mark.parametrize("name", MODELS)
def test_float32_outputs_equal_torch(name, rng):
    """Every layer and block within 1e-4 of its largest value, the logits within 2e-5."""
    module, state = pair(name, torch.float32)
    loaded = Weights(name, 10, variables(state))
    images = rng.standard_normal((IMAGES, 32, 32, 3), np.float32)
    rows, _ = compare.compare(loaded, module.eval(), images)
    assert {row.name for row in rows} > {key.rpartition(".")[0] for key in module.state_dict()}
    assert all(row.relative <= 1e-4 and np.isfinite(row.largest) for row in rows)
    assert rows[-1].name == "logits"
    assert rows[-1].relative <= 2e-5
    with jax.default_matmul_precision(None):  # with Winograd's convolutions, as a user runs it
        logits = jax.jit(partial(state.apply_fn, train=False))(variables(state), images)
    expected = module(channels_first(images)).detach().numpy()
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


@jax.jit
def training_outputs(state, images, key):
    mutable = ["batch_stats", "intermediates"]
    options = {"rngs": {"dropout": key}, "capture_intermediates": True, "mutable": mutable}
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
    loss = torch_loss(module, batch, np.float32)
    loss.backward()
    state, metrics = train_step(state, batch, KEY)
    assert float(metrics.loss_sum) / BATCH == pytest.approx(loss.item(), rel=1e-5)
    assert_first_step_equals(module, state, bound=1e-4)


class Masked(torch.nn.Module):
    """Dropout whose mask is given from outside, already scaled."""

    def forward(self, x):
        return x * self.mask


@jax.jit
def dropout_masks(state):
    """The masks of the next step by layer: what dropout makes of ones."""

    def on_ones(method, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            args = [jnp.ones_like(args[0])]
        return method(*args, **kwargs)

    _, key = jax.random.split(jax.random.fold_in(KEY, state.step))
    with nn.intercept_methods(on_ones):
        outputs = training_outputs(state, jnp.zeros((BATCH, 32, 32, 3), "float64"), key)
    return {index: outputs["classifier", str(index), "__call__"][0] for index in (0, 4)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dropout"), [("vgg16", 0.5), ("vgg16_bn", 0.0), ("resnet50_layer4", 0.0)]
)
@jax.enable_x64(True)
def test_twenty_float64_training_steps_equal_torch(name, dropout, rng):
    """The proof: one step within 1e-11; losses within 1e-10, all that training leaves in 1e-9."""
    module, state = pair(name, torch.float64, dropout=dropout)
    before = jax.tree.map(np.array, state.params)
    if dropout:
        module.classifier[0], module.classifier[4] = Masked(), Masked()
    adam = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)
    decay = torch.optim.lr_scheduler.StepLR(adam, DECAY_STEPS, gamma=1 / 3)
    for step in range(STEPS):
        batch = draw(rng)
        for index, mask in dropout_masks(state).items() if dropout else ():
            module.classifier[index].mask = torch.tensor(np.asarray(mask))
        adam.zero_grad()
        loss = torch_loss(module, batch, np.float64)
        loss.backward()
        adam.step()
        decay.step()
        state, metrics = train_step(state, batch, KEY)
        bound = 1e-10 if step else 1e-12
        assert float(metrics.loss_sum) / BATCH == pytest.approx(loss.item(), rel=bound)
        if step == 0:
            assert_first_step_equals(module, state, bound=1e-11)

    ours = state.opt_state[0]
    assert ours.count == STEPS
    mu, nu = torch_reference.moments(adam, module)
    expected = torch_reference.to_flax(module.state_dict(), module)
    assert worst(variables(state), expected) <= (1e-9,)
    assert worst({"mu": ours.mu, "nu": ours.nu}, {"mu": mu, "nu": nu}) <= (1e-9,)
    moved, _ = worst(jax.tree.map(np.asarray, state.params), before)
    assert moved > 1e-5  # the steps did something


@jax.enable_x64(True)
def test_weight_decay_is_that_of_torchs_adamw(rng):
    params, optimizer = {"kernel": rng.normal(size=(4, 3))}, make_optimizer(1e-2, weight_decay=0.3)
    weight, opt_state = torch.tensor(params["kernel"]), optimizer.init(params)
    adam = torch.optim.AdamW([weight], lr=1e-2, weight_decay=0.3)
    for _ in range(STEPS):
        gradient = rng.normal(size=(4, 3))
        weight.grad = torch.tensor(gradient)
        adam.step()
        updates, opt_state = optimizer.update({"kernel": gradient}, opt_state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["kernel"], weight, rtol=1e-12)
