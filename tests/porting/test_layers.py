"""Every layer equals torch's in float64: outputs, gradients and running statistics.

The weights go to torch by the port's one rule, and every key fits.
"""

from functools import partial

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcifar import layers
from jaxcifar.files.torch_names import torch_view

torch = pytest.importorskip("torch", reason="torch is not installed")
from torch import nn  # noqa: E402

BOUND = 1e-12  # relative to the largest value, if that exceeds 1
BOUNDS = {"Hardsigmoid": 1e-7}  # torch's gradient has a sixth in float32
IMAGES = st.tuples(st.just(2), st.sampled_from([7, 8]), st.sampled_from([7, 9]), st.just(4))
ANY = st.sampled_from([(3, 4), (2, 5, 4), (2, 3, 5, 4)])
BOOLEANS, EPS = st.booleans(), st.sampled_from([1e-5, 1e-3])


def sizes(low, high):
    """A number, or one for rows and one for columns."""
    return st.integers(low, high) | st.tuples(st.integers(low, high), st.integers(low, high))


def some(required=(), **optional):
    return st.fixed_dictionaries(dict(required), optional=optional)


CONV = {"features": st.sampled_from([4, 8]), "kernel_size": sizes(1, 3)}
GROUPS = {"groups": st.sampled_from([1, 2, 4]), "use_bias": BOOLEANS, "dilation": sizes(1, 2)}
POOL = {"stride": sizes(1, 3), "padding": sizes(0, 1), "ceil_mode": BOOLEANS}
FUNCTIONS = [n for n, layer in vars(layers).items() if getattr(layer, "func", 0) is layers.Function]
ARGUMENTS = dict.fromkeys(FUNCTIONS, some()) | {
    "LeakyReLU": some(negative_slope=st.sampled_from([0.1, 0.5])),
    "Linear": some({"features": st.integers(1, 5)}, use_bias=BOOLEANS),
    "Conv": some(CONV, stride=sizes(1, 3), padding=sizes(0, 3) | st.just("valid"), **GROUPS)
    | some(CONV | {"padding": st.just("same")}, **GROUPS),
    "BatchNorm": some(
        eps=EPS,
        momentum=st.sampled_from([None, 0.0, 0.3]),
        affine=BOOLEANS,
        track_running_stats=BOOLEANS,
    ),
    "GroupNorm": some({"num_groups": st.sampled_from([1, 2])}, eps=EPS, affine=BOOLEANS),
    "LayerNorm": some(
        {"normalized_shape": st.just(4)}, eps=EPS, elementwise_affine=BOOLEANS, use_bias=BOOLEANS
    ),
    "MaxPool": some({"window": sizes(2, 3)}, dilation=sizes(1, 2), **POOL),
    "AvgPool": some({"window": sizes(2, 3)}, count_include_pad=BOOLEANS, **POOL),
    "AdaptiveAvgPool": some({"output_size": sizes(1, 10)}),
}
CHANNELS = {"Conv": "in_channels", "Linear": "in_features"}
CHANNELS |= {"BatchNorm": "num_features", "GroupNorm": "num_channels"}
SHAPES = dict.fromkeys([name for name in ARGUMENTS if "Conv" in name or "Pool" in name], IMAGES)


def torch_module(name, shape, options):
    """Torch's layer of the same arguments, in float64."""
    features = "out_features" if name == "Linear" else "out_channels"
    renamed = {"features": features, "use_bias": "bias", "window": "kernel_size"}
    options = {renamed.get(key, key): value for key, value in options.items()}
    if name in CHANNELS:
        options[CHANNELS[name]] = shape[-1]
    dimensions = "1d" if len(shape) < 4 else "2d"
    return (getattr(nn, name, None) or getattr(nn, name + dimensions))(**options).double()


def draw_variables(layer, x, rng):
    """Random weights and statistics of a layer."""
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), x, train=False))
    leaves = {
        path: rng.uniform(0.5, 1.5, leaf.shape) if leaf.ndim else np.asarray(3, leaf.dtype)
        for path, leaf in flatten_dict(shapes).items()
    }
    return {"params": {}} | unflatten_dict(leaves)


@partial(jax.jit, static_argnums=(0, 1))
def run(layer, train, variables, x):
    """The output, a random ``dy``, its gradients for parameters and input, and new statistics."""

    def forward(params, x):
        return layer.apply(variables | {"params": params}, x, train=train, mutable="batch_stats")

    y, vjp, updates = jax.vjp(forward, variables["params"], x, has_aux=True)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    grads, dx = vjp(jax.numpy.asarray(dy))
    return y, dy, dx, {"params": grads} | updates


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch copies its input
@pytest.mark.parametrize("name", ARGUMENTS)
@settings(deadline=None, max_examples=10)
@given(data=st.data())
@jax.enable_x64(True)
def test_a_layer_equals_torch(name, data):
    shape, options = data.draw(SHAPES.get(name, ANY)), data.draw(ARGUMENTS[name])
    bound = BOUNDS.get(name, BOUND)
    layer, module = getattr(layers, name)(**options), torch_module(name, shape, options)
    rng = np.random.default_rng(0)
    # Different multiples of 1/2: pooling has no ties, and activations are tried where they jump.
    x = (rng.permutation(np.prod(shape)) - np.prod(shape) // 2).reshape(shape) / 2
    variables = draw_variables(layer, x, rng)
    weights = {key: torch.tensor(array) for key, array in torch_view(variables).items()}
    module.load_state_dict(weights, strict=True)

    def to_torch(array):
        last = isinstance(module, nn.Linear | nn.LayerNorm) or array.ndim < 3
        return torch.tensor(array if last else np.moveaxis(array, -1, 1))

    for train in (True, False) if name == "BatchNorm" else (True,):
        y, dy, dx, trees = jax.device_get(run(layer, train, variables, x))
        inputs = to_torch(x).requires_grad_()
        module.train(train).zero_grad()
        expected = module(inputs)
        expected.backward(to_torch(dy))
        pairs = [(to_torch(y), expected.detach()), (to_torch(dx), inputs.grad)]
        results = {key: p.grad for key, p in module.named_parameters()}
        results |= dict(module.named_buffers())
        ours = torch_view(trees)
        assert ours.keys() == results.keys()
        pairs += [(torch.tensor(ours[key]), result) for key, result in results.items()]
        for ours, theirs in pairs:
            assert ours.shape == theirs.shape
            assert (ours - theirs).abs().max() <= bound * max(1, theirs.abs().max())
        variables |= {"batch_stats": trees["batch_stats"]} if "batch_stats" in trees else {}
