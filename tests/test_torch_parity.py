"""Outputs, gradients and training steps equal torch's, with random weights and statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar import steps
from jaxcifar.augment import normalize
from jaxcifar.models import MODELS, create_model
from jaxcifar.state import TrainState, make_optimizer

torch = pytest.importorskip("torch", reason="torch is not installed")
from torch_models import create_torch_model  # noqa: E402  (needs torch)

from tests import torch_reference  # noqa: E402


def relative(ours, theirs):
    """The largest difference in any leaf, relative to the leaf's largest value.

    The gradient of a bias before a batch norm is 0, and what is computed of it is rounding, in
    both programs: it is measured against the gradient of its kernel.
    """
    worst = 0.0
    for name, leaf in theirs.items():
        if isinstance(leaf, dict):
            worst = max(worst, relative(ours[name], leaf))
            continue
        scale = np.abs(leaf).max()
        if name == "bias" and "kernel" in theirs:
            kernel_scale = np.abs(theirs["kernel"]).max()
            scale = kernel_scale if scale < 1e-12 * kernel_scale else scale
        worst = max(worst, float(np.abs(ours[name] - leaf).max() / scale))
    assert ours.keys() == theirs.keys()
    return worst


def pair(name, dtype=torch.float64):
    """The same weights in torch and in a train state."""
    module = torch_reference.randomize(create_torch_model(name, dropout=0.0).to(dtype=dtype))
    params, batch_stats = torch_reference.to_flax(module.state_dict(), module)
    model = create_model(name, dropout_rate=0.0, dtype=str(dtype).removeprefix("torch."))
    params, batch_stats = jax.tree.map(jnp.asarray, (params, batch_stats))
    state = TrainState.create(
        apply_fn=model.apply, params=params, batch_stats=batch_stats, tx=make_optimizer(1e-3)
    )
    return module, state


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_outputs_equal_torch(name, rng):
    module, state = pair(name, torch.float32)
    images = rng.standard_normal((8, 32, 32, 3), np.float32)
    with torch.no_grad():
        theirs = module.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    ours = state.apply_fn(variables, images, train=False)
    assert np.abs(ours - theirs).max() <= 2e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("name", MODELS)
def test_float64_gradients_and_statistics_equal_torch(name, rng):
    """Loss, every gradient and every running statistic of one batch in training mode.

    One batch, because Adam turns a gradient's rounding into a step of the learning rate's size
    where the gradient is as small as its epsilon: from there two right programs part.
    """
    images = rng.integers(0, 256, (8, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, 8).astype(np.int32)
    with jax.enable_x64(True):
        module, state = pair(name)
        pixels = np.array(normalize(jnp.asarray(images), jnp.float64))
        logits = module.train()(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long())
        loss.backward()
        (our_loss, (_, our_stats)), our_grads = jax.jit(
            jax.value_and_grad(steps.loss_fn, has_aux=True)
        )(state.params, state, jnp.asarray(pixels), jnp.asarray(labels), jax.random.key(0))

        assert float(our_loss) == pytest.approx(loss.item(), rel=1e-10)
        grads, _ = torch_reference.to_flax(
            {n: p.grad for n, p in module.named_parameters()}, module
        )
        assert relative(our_grads, grads) < 1e-9
        _, batch_stats = torch_reference.to_flax(module.state_dict(), module)
        assert relative(our_stats, batch_stats) < 1e-9
