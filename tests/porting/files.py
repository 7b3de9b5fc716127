"""Small files of torch, and the port run on them in the test's folder, the current one."""

from pathlib import Path

import pooch
import pytest

from jaxcifar import UserError, cli
from jaxcifar.files import weights

torch = pytest.importorskip("torch", reason="torch is not installed")
from safetensors.torch import load_file, save_file  # noqa: E402, F401 - for the tests

from jaxcifar.porting.torch_models import VGG16, create_torch_model  # noqa: E402


class Runs:
    """Its pickle calls a function when it is read."""

    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


def hollow(name="vgg16", shift=0.0):
    """A whole state dict that takes a few kB: each tensor repeats a number of its own."""
    with torch.device("meta"):
        state_dict = create_torch_model(name).state_dict()
    return {
        key: torch.full((), index + shift, dtype=tensor.dtype).expand(tensor.shape)
        for index, (key, tensor) in enumerate(state_dict.items(), start=1)
    }


FIRST = "features.0.weight"
VGG = hollow()


def hollow_adam(step=3.0, count=32, **group):
    """The state dict of an Adam over a VGG16 with moments for ``count`` parameters, as small."""
    with torch.device("meta"):
        parameters = list(VGG16().parameters())
    settings = torch.optim.Adam(parameters, lr=1e-3).state_dict()["param_groups"][0]
    state = {
        index: {
            "step": torch.tensor(step),
            "exp_avg": torch.tensor(0.5).expand(parameter.shape),
            "exp_avg_sq": torch.tensor(0.25).expand(parameter.shape),
        }
        for index, parameter in enumerate(parameters[:count])
    }
    return {"state": state, "param_groups": [{**settings, **group}]}


def port(*arguments):
    cli.call("port", [str(argument) for argument in arguments])


def listing():
    """Every name in the folder, hidden ones too, and what tells whether a file was touched."""
    return {
        str(path): not path.is_file() or (path.stat().st_mtime_ns, pooch.file_hash(path))
        for path in Path().rglob("*")
    }


def refused(*arguments, error=UserError):
    """Port, expect an error of one line and an untouched folder, and return the message."""
    before = listing()
    with pytest.raises(error) as caught:
        port(*arguments)
    assert listing() == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def takes(capsys, content, *flags):
    """Save, port within the port's own check of the bits, and return what was printed."""
    torch.save(content, "in.ckpt")
    before = listing()
    port("in.ckpt", "out", "--dry-run", "--no-verify", *flags)
    assert listing() == before
    return "".join(capsys.readouterr())


def assert_equal(expected, actual):
    """The same keys in the same order, dtypes, shapes and bits."""
    assert list(actual) == list(expected)
    for key, tensor in expected.items():
        pair = actual[key], tensor
        assert (pair[0].dtype, pair[0].shape) == (tensor.dtype, tensor.shape), key
        assert torch.equal(*(t.contiguous().ravel().view(torch.uint8) for t in pair)), key


def assert_read(path, expected, **options):
    """The library reads exactly this state dict from a file."""
    arrays = weights.to_torch(weights.load(path, **options))
    assert_equal(expected, {key: torch.from_numpy(a) for key, a in arrays.items()})
