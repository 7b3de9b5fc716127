"""The port tool: what it refuses, what it takes, and that what it writes is what it read."""

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcifar import UserError, data, evaluate
from jaxcifar.core import augment
from jaxcifar.files import weights
from jaxcifar.files.torch_names import PortError

torch = pytest.importorskip("torch", reason="torch is not installed")
from safetensors.torch import load_file, save_file  # noqa: E402

from jaxcifar import port as port_torch_ckpt  # noqa: E402
from jaxcifar.porting.torch_models import create_torch_model  # noqa: E402
from tests.porting import torch_reference  # noqa: E402

TOOL = Path(port_torch_ckpt.__file__)
QUICK = ("--dry-run", "--no-verify")
FIRST = "features.0.weight"
MINE = """import torch
from torch import nn
from jaxcifar.porting.torch_models import VGG16
class Mine(VGG16):
"""


@pytest.fixture
def folder(tmp_path):
    """An empty folder, removed at once: pytest would keep gigabytes."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def modules():
    names = ("vgg16", "resnet50_layer4")
    return {name: torch_reference.randomize(create_torch_model(name)) for name in names}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, modules):
    """Each module's state dict in a file."""
    home = tmp_path_factory.mktemp("checkpoints")
    for name, module in modules.items():
        torch.save(module.state_dict(), home / f"{name}.ckpt")
    yield {name: home / f"{name}.ckpt" for name in modules}
    shutil.rmtree(home)


def hollow(name="vgg16", shift=0.0):
    """A whole state dict that takes a few kB: each tensor repeats a number of its own."""
    with torch.device("meta"):
        state_dict = create_torch_model(name).state_dict()
    return {
        key: torch.full((), index + shift, dtype=tensor.dtype).expand(tensor.shape)
        for index, (key, tensor) in enumerate(state_dict.items(), start=1)
    }


def hollow_adam(moment=0.5, step=3.0, **group):
    with torch.device("meta"):
        parameters = list(create_torch_model("vgg16").parameters())
    settings = torch.optim.Adam(parameters, lr=1e-3).state_dict()["param_groups"][0]
    state = {
        index: {
            "step": torch.tensor(step),
            "exp_avg": torch.as_tensor(moment).expand(parameter.shape),
            "exp_avg_sq": torch.tensor(0.25).expand(parameter.shape),
        }
        for index, parameter in enumerate(parameters)
    }
    return {"state": state, "param_groups": [{**settings, **group}]}


def port(*argv):
    port_torch_ckpt.main([str(arg) for arg in argv])


def listing(folder):
    """Every name in a folder, hidden ones too, and what tells whether a file was touched."""
    return {
        str(path.relative_to(folder)): path.is_dir() or (path.stat().st_mtime_ns, sha256(path))
        for path in folder.rglob("*")
    }


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(folder, *argv, error=UserError):
    """Ports, expects the one error and an untouched folder, and returns the message."""
    before = listing(folder)
    with pytest.raises(error) as caught:
        port(*argv)
    assert listing(folder) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused_content(folder, content, **options):
    torch.save(content, folder / "in.ckpt")
    return refused(folder, folder / "in.ckpt", folder / "out", "--no-verify", **options)


def assert_same(given, back):
    """The same keys in the same order, dtypes, shapes and bits."""
    assert list(back) == list(given)
    for key, tensor in given.items():
        assert (back[key].dtype, back[key].shape) == (tensor.dtype, tensor.shape), key
        assert torch.equal(*(t.contiguous().ravel().view(torch.uint8) for t in (back[key], tensor)))


def assert_read(path, given, **options):
    """The library reads exactly this state dict from a file."""
    back = weights.to_torch(weights.load(path, **options))
    assert_same(given, {key: torch.from_numpy(array) for key, array in back.items()})


def takes_quickly(capsys, path, *flags):
    """The tool accepts a file, within its own check of the bits; returns what it printed."""
    before = listing(path.parent)
    port(path, path.parent / "out", *QUICK, *flags)
    assert listing(path.parent) == before
    out, error = capsys.readouterr()
    assert error == ""
    return out


# Refused


class Runs:
    """Its pickle calls a function when it is read."""

    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("function", "named"), [(os.system, "posix.system"), (eval, "eval")])
@pytest.mark.parametrize("place", ["weights", "beside"])
def test_a_pickle_that_would_run_code_is_refused(folder, zipped, function, named, place):
    marker = folder / "ran"
    shell, python = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    attack = Runs(function, shell if function is os.system else python)
    content = {"state_dict": hollow(), "epoch": attack}
    if place == "weights":
        content = hollow() | {FIRST: attack}
    torch.save(content, folder / "in.ckpt", _use_new_zipfile_serialization=zipped)
    message = refused(folder, folder / "in.ckpt", folder / "out")
    assert "in.ckpt is refused" in message
    assert named in message
    assert not marker.exists()
    pickle.loads(pickle.dumps(attack))
    assert marker.exists()  # so it would have run


def test_a_whole_pickled_module_is_refused(folder):
    message = refused_content(folder, create_torch_model("vgg16"))
    assert "torch_models.VGG16" in message
    assert "save model.state_dict() alone" in message


def cuts(content):
    size = len(content)
    return [1, 3, 4, 20, 100, size // 3, size // 2, size - 100, size - 20, size - 1]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_torch_file_is_refused(folder, zipped):
    path = folder / "in.ckpt"
    torch.save(hollow(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for cut in cuts(content):
        path.write_bytes(content[:cut])
        message = refused(folder, path, folder / "out")
        assert "in.ckpt is damaged" in message or "in.ckpt is neither a torch file" in message


def test_half_of_a_real_file_is_refused(folder, checkpoints):
    content = checkpoints["vgg16"].read_bytes()
    (folder / "in.ckpt").write_bytes(content[: len(content) // 2])
    assert "in.ckpt is damaged" in refused(folder, folder / "in.ckpt", folder / "out")


def test_a_truncated_safetensors_file_is_refused(folder):
    path = folder / "in.safetensors"
    save_file({FIRST: torch.zeros(64, 3, 3, 3)}, path)
    content = path.read_bytes()
    for cut in cuts(content):
        path.write_bytes(content[:cut])
        assert "no whole safetensors file" in refused(folder, path, folder / "out")


def test_flipped_bytes_in_the_pickle_are_refused(folder):
    path = folder / "in.ckpt"
    torch.save({"state_dict": hollow(), "optimizer": hollow_adam()}, path)
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("in/data.pkl")
    content = path.read_bytes()
    start = content.index(pickled)
    middle = start + len(pickled) // 2
    path.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
    assert "in.ckpt is damaged" in refused(folder, path, folder / "out")
    generator = np.random.default_rng(0)
    for position in generator.integers(0, len(pickled), 8) + start:
        flipped = bytes([content[position] ^ (1 << generator.integers(8))])
        path.write_bytes(content[:position] + flipped + content[position + 1 :])
        with contextlib.suppress(UserError):  # some only change a name that means nothing
            port(path, folder / "out", *QUICK)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ""])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"epoch 1, loss 2.3\n" * 100, "neither a torch file nor a safetensors file"),
        (b"PK\x03\x04" + bytes(1000), "is damaged"),
        (b"\x80\x02}q\x00.", "neither a torch file nor a safetensors file"),
        (b"\xff" * 7 + b'\x7f{"a":', "no whole safetensors file"),
    ],
)
def test_what_is_no_file_of_tensors_is_refused(folder, suffix, content, words):
    path = folder / f"in{suffix}"
    path.write_bytes(content)
    message = refused(folder, path, folder / "out")
    assert path.name in message
    if suffix != ".safetensors" or content.startswith(b"PK"):
        assert words in message
    else:
        assert "no whole safetensors file" in message or "is empty" in message


def test_a_missing_file_and_an_empty_folder_are_refused(folder):
    message = refused(folder, folder / "none.ckpt", folder / "out", error=FileNotFoundError)
    assert "none.ckpt" in message
    (folder / "run.ckpt").mkdir()
    assert "run.ckpt holds no checkpoint" in refused(folder, folder / "run.ckpt", folder / "out")


def test_a_compressed_zip_is_refused(folder):
    torch.save(hollow(), folder / "stored.ckpt")
    with (
        zipfile.ZipFile(folder / "stored.ckpt") as stored,
        zipfile.ZipFile(folder / "in.ckpt", "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    assert "compressed zip" in refused(folder, folder / "in.ckpt", folder / "out")


def torchvision_resnet50():
    """Keys and shapes of torchvision's."""
    state_dict = {}

    def add(conv, norm, *shape):
        state_dict[f"{conv}.weight"] = shape
        for name in ("weight", "bias", "running_mean", "running_var"):
            state_dict[f"{norm}.{name}"] = shape[:1]
        state_dict[f"{norm}.num_batches_tracked"] = ()

    add("conv1", "bn1", 64, 3, 7, 7)
    channels = 64
    for layer, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), 1):
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            add(f"{name}.conv1", f"{name}.bn1", width, channels, 1, 1)
            add(f"{name}.conv2", f"{name}.bn2", width, width, 3, 3)
            add(f"{name}.conv3", f"{name}.bn3", 4 * width, width, 1, 1)
            if block == 0:
                shape = (4 * width, channels, 1, 1)
                add(f"{name}.downsample.0", f"{name}.downsample.1", *shape)
            channels = 4 * width
    state_dict |= {"fc.weight": (1000, 2048), "fc.bias": (1000,)}
    return {key: torch.zeros(()).expand(shape) for key, shape in state_dict.items()}


def test_another_architecture_is_refused(folder):
    state_dict = torchvision_resnet50()
    assert len(state_dict) == 320
    message = refused_content(folder, state_dict, error=PortError)
    assert "is no known model; the nearest is" in message
    assert " missing: " in message
    assert " unexpected: conv1.weight (64, 3, 7, 7), bn1.weight (64,)" in message


def test_another_model_than_the_asked_one_is_refused(folder, checkpoints):
    flags = folder / "out", "--model", "resnet50_layer4"
    assert "is vgg16, not resnet50_layer4" in refused(folder, checkpoints["vgg16"], *flags)


def test_everything_that_does_not_fit_is_in_one_error(folder):
    state_dict = hollow()
    del state_dict["features.2.bias"]
    state_dict["features.99.bias"] = torch.zeros(7)
    state_dict[FIRST] = torch.zeros(64, 3, 5, 5)
    torch.save(state_dict, folder / "in.ckpt")
    before = listing(folder)
    with pytest.raises(PortError) as caught:
        port(folder / "in.ckpt", folder / "out")
    assert listing(folder) == before
    assert caught.value.missing == {"features.2.bias": (64,)}
    assert caught.value.unexpected == {"features.99.bias": (7,)}
    assert caught.value.misshaped == {FIRST: ((64, 3, 5, 5), (64, 3, 3, 3))}
    for words in (
        "in.ckpt is no known model; the nearest is vgg16",
        "1 missing: features.2.bias (64,)",
        "1 unexpected: features.99.bias (7,)",
        f"1 of another shape: {FIRST} (64, 3, 5, 5), expected (64, 3, 3, 3)",
    ):
        assert words in str(caught.value)


def test_a_tensor_that_repeats_one_number_ten_billion_times_is_refused(folder):
    state_dict = hollow() | {"padding": torch.zeros(()).expand(10**10)}
    message = refused_content(folder, state_dict, error=PortError)
    assert "1 unexpected: padding (10000000000,)" in message
    assert (folder / "in.ckpt").stat().st_size < 50_000


def test_a_head_of_ten_billion_classes_is_refused(folder):
    number = torch.zeros(())
    head = {
        "classifier.5.weight": number.expand(10**10, 512),
        "classifier.5.bias": number.expand(10**10),
    }
    message = refused_content(folder, hollow() | head)
    assert "classifier.5" in message or "10000000000 classes" in message


MEASURE = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from jaxcifar import port as port_torch_ckpt  # noqa: E402
from jaxcifar import UserError

for path in sys.argv[3:]:
    try:
        port_torch_ckpt.main([path, sys.argv[2], "--no-verify"])
    except UserError as error:
        assert "unexpected: padding" in str(error), error
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_a_gigabyte_of_padding_takes_no_memory(folder):
    if shutil.disk_usage(folder).free < 3 * 10**9:
        pytest.skip("too little disk space")
    paths = []
    for count in (1, 250_000_000):
        paths += [folder / f"{count}.ckpt", folder / f"{count}.safetensors"]
        torch.save(hollow() | {"padding": torch.zeros(count)}, paths[-2])
        entry = {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}
        header = json.dumps({"padding": entry}).encode()
        with paths[-1].open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 4 * count)
    assert all(path.stat().st_size > 10**9 for path in paths[2:])
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, TOOL.parent, folder / "out", *paths],
        capture_output=True,
        text=True,
        check=True,
    )
    _, least, zipped, safetensors = (int(line) for line in run.stdout.split())
    assert zipped - least < 200  # MB
    assert safetensors - least < 200


def test_a_dict_that_contains_itself_is_refused(folder):
    loop = {}
    loop["state_dict"] = loop
    assert "holds no state dict" in refused_content(folder, loop)
    loop = hollow()
    loop["state_dict"] = loop
    assert "'state_dict' is a dict, expected a tensor" in refused_content(folder, loop)


DEPTH = 50_000
NAME = b"X\x0a\0\0\0state_dict"


@pytest.mark.parametrize(
    ("pickled", "words"),
    [
        ((b"}" + NAME) * DEPTH + b"}" + b"s" * DEPTH, "holds no state dict"),
        (b"}" + NAME + b"]" * DEPTH + b"a" * (DEPTH - 1) + b"s", "holds no state dict"),
        (b"]" * DEPTH + b"a" * (DEPTH - 1), "holds a list"),
        (b"})" + b"\x85" * DEPTH + b"K\x01s", "holds no state dict"),
    ],
    ids=["dicts", "lists in a dict", "lists", "tuples as a key"],
)
def test_deep_nesting_is_refused(folder, pickled, words):
    with zipfile.ZipFile(folder / "in.ckpt", "w") as archive:
        archive.writestr("in/data.pkl", b"\x80\x02" + pickled + b".")
        archive.writestr("in/version", "3\n")
    assert words in refused(folder, folder / "in.ckpt", folder / "out")


@pytest.mark.parametrize("value", [torch.zeros(1), 3])
def test_a_deep_tuple_as_a_key_among_tensors_is_refused(folder, value):
    key = ()
    for _ in range(5000):
        key = (key,)
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    torch.save({key: value, FIRST: torch.zeros(1)}, folder / "in.ckpt")
    sys.setrecursionlimit(usual)
    assert "in.ckpt" in refused(folder, folder / "in.ckpt", folder / "out")


SHAPE = (64, 3, 3, 3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.full(SHAPE, 1 / 3, dtype=torch.float64), "float64"),
        (lambda: torch.full(SHAPE, 1e300, dtype=torch.float64), "float64"),
        (lambda: torch.zeros(SHAPE, dtype=torch.int8), "int8"),
        (lambda: torch.zeros(SHAPE, dtype=torch.bool), "bool"),
        (lambda: torch.zeros(SHAPE, dtype=torch.complex64), "complex64"),
        (lambda: torch.zeros(SHAPE).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda: torch.zeros(SHAPE).to_sparse(), "sparse"),
        (lambda: torch.zeros(SHAPE, device="meta"), "empty"),
        (lambda: torch.zeros(1, *SHAPE), "(1, 64, 3, 3, 3), expected (64, 3, 3, 3)"),
    ],
    ids=["f64", "large f64", "int8", "bool", "complex", "float8", "sparse", "meta", "rank 5"],
)
def test_a_weight_that_cannot_be_kept_exactly_is_refused(folder, make, words):
    message = refused_content(folder, hollow() | {FIRST: make()})
    assert FIRST in message
    assert words in message


def test_a_float8_weight_in_safetensors_is_refused(folder):
    path = folder / "in.safetensors"
    save_file({FIRST: torch.zeros(SHAPE).to(torch.float8_e4m3fn)}, path)
    assert "in.safetensors" in refused(folder, path, folder / "out", "--no-verify")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({7: torch.zeros(1)}, "a key is a int, expected a text"),
        ({"epoch": 3}, "'epoch' is a int, expected a tensor"),
        ({"epoch": None}, "'epoch' is a NoneType, expected a tensor"),
        ({"lines": ["a"]}, "'lines' is a list, expected a tensor"),
    ],
    ids=["a number as key", "a number", "nothing", "a list"],
)
def test_a_stranger_among_the_tensors_is_named(folder, entry, words):
    message = refused_content(folder, hollow() | entry)
    assert words in message
    assert ": 7 is a Tensor, expected a tensor" not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1], "holds a list"),
        ({}, "not a state dict"),
        (torch.zeros(3), "holds a Tensor"),
        ({"epoch": 1, "loss": 0.5}, "holds no state dict: its entries are epoch, loss"),
        ({"state_dict": None}, "holds no state dict: its entries are state_dict"),
    ],
    ids=["list", "empty", "tensor", "no weights", "none"],
)
def test_a_file_without_a_state_dict_is_refused(folder, content, words):
    assert words in refused_content(folder, content)


def test_an_existing_output_is_kept(folder, checkpoints):
    out, other = folder / "out.ckpt", folder / "folder"
    out.write_bytes(b"mine")
    other.mkdir()
    for target in (out, other):
        message = refused(folder, checkpoints["vgg16"], target)
        assert f"{target} exists already" in message
        assert "--force" in message
    message = refused(folder, checkpoints["vgg16"], folder / "new", "--report", out)
    assert f"{out} exists already" in message


def test_an_output_in_a_missing_folder_is_refused(folder, checkpoints):
    message = refused(folder, checkpoints["vgg16"], folder / "none" / "out")
    assert f"no folder {folder / 'none'}" in message


@pytest.mark.parametrize("through", ["its name", "a link"])
def test_the_input_is_not_overwritten(folder, through):
    path = target = folder / "in.ckpt"
    torch.save(hollow(), path)
    if through == "a link":
        target = folder / "link.ckpt"
        target.symlink_to(path)
    assert "is the input itself" in refused(folder, path, target, "--force", "--no-verify")


def test_a_folder_around_the_input_is_not_replaced(folder):
    (folder / "runs").mkdir()
    torch.save(hollow(), folder / "runs" / "in.ckpt")
    source = folder / "runs" / "in.ckpt"
    assert "runs" in refused(folder, source, folder / "runs", "--force", "--no-verify")


@pytest.mark.parametrize("report", ["in.ckpt", "out.ckpt", "none/report.json"])
def test_a_report_in_a_bad_place_is_refused_before_anything_is_written(folder, report):
    torch.save(hollow(), folder / "in.ckpt")
    flags = "--report", folder / report, "--force", "--no-verify"
    refused(folder, folder / "in.ckpt", folder / "out.ckpt", *flags, error=(UserError, OSError))


@pytest.mark.parametrize("content", [hollow, lambda: {"state_dict": hollow()}])
def test_averages_that_are_not_there_are_refused(folder, content):
    torch.save(content(), folder / "in.ckpt")
    assert "EMA" in refused(folder, folder / "in.ckpt", folder / "out", "--ema")
    (folder / "run").mkdir()
    assert "is for torch files" in refused(folder, folder / "run", folder / "out", "--ema")


# Accepted


@pytest.mark.parametrize(
    ("dtype", "flags"), [(torch.float16, ["--no-verify"]), (torch.bfloat16, [])]
)
def test_half_precision_comes_back_in_the_same_bits(folder, capsys, modules, dtype, flags):
    half = {
        key: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for key, tensor in modules["vgg16"].state_dict().items()
    }
    torch.save(half, folder / "in.ckpt")
    port(folder / "in.ckpt", folder / "orbax", "--no-verify")
    name = str(dtype).removeprefix("torch.")
    assert f"took 34 tensors of {name} into the model's dtypes" in capsys.readouterr().out
    kept = weights.load(folder / "orbax")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(kept.variables)} == {"float32", "int32"}
    port(folder / "orbax", folder / "out", "--to", "torch", *flags)
    assert_same(half, torch.load(folder / "out"))


def test_half_precision_in_safetensors_comes_back_in_the_same_bits(folder):
    half = {k: t.bfloat16() if t.is_floating_point() else t for k, t in hollow().items()}
    save_file({key: tensor.contiguous() for key, tensor in half.items()}, folder / "in.safetensors")
    port(folder / "in.safetensors", folder / "out.safetensors", "--no-verify")
    back = load_file(folder / "out.safetensors")
    assert_same(half, {key: back[key] for key in half})


def test_float64_that_is_exact_in_float32_is_taken(folder, capsys):
    double = hollow() | {FIRST: hollow()[FIRST].double()}
    torch.save(double, folder / "in.ckpt")
    assert "float64" in takes_quickly(capsys, folder / "in.ckpt")
    assert_read(folder / "in.ckpt", double)


def test_strided_and_shared_tensors_are_taken(folder, modules):
    module = torch_reference.randomize(create_torch_model("vgg16"), seed=1)
    state_dict = module.to(memory_format=torch.channels_last).state_dict()
    assert not state_dict["features.2.weight"].is_contiguous()
    weight = state_dict["classifier.1.weight"]
    state_dict["classifier.1.weight"] = weight.T.contiguous().T
    state_dict["features.2.bias"] = state_dict["features.0.bias"]
    storage = torch.arange(1000.0)
    state_dict["classifier.1.bias"] = storage[3:515]
    state_dict["classifier.2.bias"] = storage[:512]
    torch.save(state_dict, folder / "in.ckpt")
    port(folder / "in.ckpt", folder / "orbax", "--no-verify")
    port(folder / "orbax", folder / "out.ckpt", "--no-verify")
    port(folder / "in.ckpt", folder / "out.safetensors", "--no-verify")
    assert_same(state_dict, torch.load(folder / "out.ckpt"))
    assert_read(folder / "out.safetensors", state_dict)


def test_older_files_and_safetensors_are_taken(folder, capsys, modules):
    state_dict = modules["vgg16"].state_dict()
    torch.save(state_dict, folder / "in.pth", _use_new_zipfile_serialization=False)
    save_file(state_dict, folder / "in.safetensors")
    for path in (folder / "in.pth", folder / "in.safetensors"):
        assert "vgg16 with 10 classes" in takes_quickly(capsys, path)
        assert_read(path, state_dict)


def test_other_numbers_of_classes_are_taken(folder, capsys):
    number = torch.tensor(0.5)
    head = {"fc.weight": number.expand(100, 1024), "fc.bias": number.expand(100)}
    torch.save(hollow("resnet50_layer4") | head, folder / "in.ckpt")
    assert "resnet50_layer4 with 100 classes" in takes_quickly(capsys, folder / "in.ckpt")


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "net"])
def test_wrappers_are_taken_off(folder, capsys, wrapper):
    torch.save({"epoch": 3, wrapper: hollow(), "best": 0.9}, folder / "in.ckpt")
    assert f"took {wrapper} of epoch, {wrapper}, best" in takes_quickly(capsys, folder / "in.ckpt")
    assert_read(folder / "in.ckpt", hollow())


@pytest.mark.parametrize(
    ("prefixes", "wrapped"),
    [
        (["module."], True),
        (["_orig_mod."], False),
        (["model."], True),
        (["module.", "_orig_mod."], False),
        (["model.", "_orig_mod.", "module."], True),
    ],
    ids=str,
)
def test_prefixes_are_taken_off(folder, capsys, prefixes, wrapped):
    state_dict = {"".join(prefixes) + key: tensor for key, tensor in hollow().items()}
    torch.save({"model": state_dict} if wrapped else state_dict, folder / "in.ckpt")
    out = takes_quickly(capsys, folder / "in.ckpt")
    for prefix in prefixes:
        assert f"took {prefix} off every key" in out
    assert_read(folder / "in.ckpt", hollow())


def test_a_prefix_of_some_keys_only_is_an_error(folder):
    first, *rest = hollow().items()
    state_dict = {f"module.{first[0]}": first[1], **dict(rest)}
    message = refused_content(folder, state_dict, error=PortError)
    assert f"1 unexpected: module.{FIRST} (64, 3, 3, 3)" in message


@pytest.mark.parametrize(
    ("entry", "wrapped"), [("state_dict_ema", False), ("model_ema", True), ("ema", True)]
)
def test_averages_are_taken_if_asked_for(folder, capsys, entry, wrapped):
    averages = hollow(shift=0.5)
    torch.save(
        {"state_dict": hollow(), entry: {"state_dict": averages} if wrapped else averages},
        folder / "in.ckpt",
    )
    out = takes_quickly(capsys, folder / "in.ckpt")
    assert f"left {entry}, an average of the weights: --ema takes that" in out
    assert_read(folder / "in.ckpt", hollow())
    assert f"took {entry} of" in takes_quickly(capsys, folder / "in.ckpt", "--ema")
    assert_read(folder / "in.ckpt", averages, ema=True)


def test_torchs_averaged_model_is_taken(folder, capsys, modules):
    averaged = torch.optim.swa_utils.AveragedModel(modules["vgg16"])
    averaged.update_parameters(modules["vgg16"])
    torch.save(averaged.state_dict(), folder / "bare.ckpt")
    torch.save(
        {"model": hollow(), "ema_model": averaged.state_dict()},
        folder / "wrapped.ckpt",
    )
    assert "left n_averaged" in takes_quickly(capsys, folder / "bare.ckpt")
    assert_read(folder / "bare.ckpt", averaged.module.state_dict())
    assert "left n_averaged" in takes_quickly(capsys, folder / "wrapped.ckpt", "--ema")
    assert_read(folder / "wrapped.ckpt", averaged.module.state_dict(), ema=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_and_kept(folder, capsys, modules, value):
    state_dict = modules["vgg16"].state_dict()
    state_dict["classifier.5.bias"] = torch.tensor([value, *range(9)])
    torch.save(state_dict, folder / "in.ckpt")
    port(folder / "in.ckpt", folder / "out.ckpt", "--report", folder / "report.json")
    assert capsys.readouterr().err == "warning: not all finite: classifier.5.bias\n"
    assert_same(state_dict, torch.load(folder / "out.ckpt"))
    invalid = []  # JSON has no NaN
    report = json.loads((folder / "report.json").read_text(), parse_constant=invalid.append)
    assert report["nonfinite"] == ["classifier.5.bias"]
    assert invalid == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bits_of_a_nan_are_kept(folder, capsys, dtype):
    patterns = {  # signs, payloads, quiet and signalling
        torch.float32: [0x7FC00000, 0x7FC12345, 0x7F800001, -0x400000],
        torch.float16: [0x7E00, 0x7E12, 0x7C01, -0x200],
        torch.bfloat16: [0x7FC0, 0x7FC1, 0x7F81, -0x40],
    }[dtype]
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    bias = torch.tensor(patterns * 16, dtype=integer).view(dtype)
    torch.save(hollow() | {"features.0.bias": bias}, folder / "in.ckpt")
    port(folder / "in.ckpt", folder / "out.ckpt", "--no-verify")
    back = torch.load(folder / "out.ckpt")["features.0.bias"]
    assert torch.equal(back.view(integer), bias.view(integer))


# What it does


@pytest.mark.parametrize("name", ["vgg16", "resnet50_layer4"])
def test_there_and_back_is_the_same_file(folder, capsys, modules, checkpoints, name):
    port(checkpoints[name], folder / "orbax", "--report", folder / "report.json")
    out, error = capsys.readouterr()
    state_dict = modules[name].state_dict()
    assert f"is {name} with 10 classes: {len(state_dict)} tensors" in out
    assert f"{len(state_dict)} of {len(state_dict)} tensors bit-identical" in out
    assert "verified against torch on 16 images" in out
    assert error == ""
    port(folder / "orbax", folder / "out.ckpt", "--no-verify")
    back = torch.load(folder / "out.ckpt", weights_only=True)
    assert_same(state_dict, back)
    fresh = create_torch_model(name)
    fresh.load_state_dict(back, strict=True)
    assert_same(state_dict, fresh.state_dict())
    assert {path.name for path in folder.iterdir()} == {"orbax", "out.ckpt", "report.json"}

    report = json.loads((folder / "report.json").read_text())
    assert report["input"] == {
        "path": str(checkpoints[name]),
        "sha256": sha256(checkpoints[name]),
    }
    assert report["output"] == {"path": str(folder / "orbax"), "format": "orbax"}
    assert (report["model"], report["num_classes"]) == (name, 10)
    assert report["tensors"] == len(state_dict)
    assert report["parameters"] == sum(p.numel() for p in modules[name].parameters())
    assert report["normalization"] == {"mean": list(augment.MEAN), "std": list(augment.STD)}
    assert report["versions"]["torch"] == torch.__version__
    assert {"python", "jax", "flax", "orbax-checkpoint", "numpy"} <= set(report["versions"])
    assert 0 < report["verification"]["largest"] <= 1e-4
    layers = {row["name"]: row for row in report["verification"]["layers"]}
    assert layers["logits"]["relative"] <= 2e-5
    named = {key.rpartition(".")[0] for key in state_dict}
    assert named <= set(layers)
    assert report["verification"]["not_compared"] == []


def test_the_tree_is_the_one_that_another_map_gives(folder, modules, checkpoints):
    module = modules["resnet50_layer4"]
    port(checkpoints["resnet50_layer4"], folder / "orbax", "--no-verify")
    variables = weights.load(folder / "orbax").variables
    params, batch_stats = torch_reference.to_flax(module.state_dict(), module)
    jax.tree.map(
        np.testing.assert_array_equal, variables, {"params": params, "batch_stats": batch_stats}
    )


def test_a_dry_run_writes_nothing(folder, capsys, checkpoints):
    (folder / "out.ckpt").write_bytes(b"mine")
    before = listing(folder)
    port(checkpoints["vgg16"], folder / "out.ckpt", "--dry-run")
    assert listing(folder) == before
    out = capsys.readouterr().out
    assert "verified against torch" in out
    assert "dry run: nothing written" in out
    report = folder / "report.json"
    port(checkpoints["vgg16"], folder / "out.ckpt", *QUICK, "--report", report)
    assert json.loads(report.read_text())["tensors"] == 35
    report.unlink()
    assert listing(folder) == before


def test_force_replaces_files_and_folders(folder, checkpoints):
    (folder / "out.ckpt").write_bytes(b"old")
    (folder / "out").mkdir()
    (folder / "out" / "_CHECKPOINT_METADATA").write_bytes(b"old")
    (folder / "out" / "old").write_bytes(b"old")
    (folder / "report.json").write_text("old")
    flags = "--force", "--no-verify", "--report", folder / "report.json"
    for name in ("out.ckpt", "out"):
        port(checkpoints["vgg16"], folder / name, *flags)
        assert weights.load(folder / name).model == "vgg16"
        assert json.loads((folder / "report.json").read_text())["output"]["path"].endswith(name)
    assert not (folder / "out" / "old").exists()
    port(checkpoints["vgg16"], folder / "out", *flags, "--to", "safetensors")
    assert load_file(folder / "out").keys() == torch.load(checkpoints["vgg16"]).keys()
    assert {path.name for path in folder.iterdir()} == {"out", "out.ckpt", "report.json"}


def test_force_leaves_what_is_no_checkpoint(folder, checkpoints):
    thesis = folder / "precious" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("done")
    message = refused(folder, checkpoints["vgg16"], thesis.parent, "--force", "--no-verify")
    assert "is a folder and no checkpoint" in message
    flags = "--report", thesis.parent, "--force", "--no-verify"
    assert "is a folder" in refused(folder, checkpoints["vgg16"], folder / "out", *flags)


def test_nothing_is_written_if_the_proof_fails(folder, checkpoints, against):
    (folder / "old.ckpt").write_bytes(b"old")
    mine = against("    def forward(self, x):\n        return super().forward(x) * 1.001\n")
    flags = "--force", "--against", f"{mine}:Mine", "--report", folder / "report.json"
    message = refused(folder, checkpoints["vgg16"], folder / "old.ckpt", *flags)
    assert "outputs differ from torch's, first logits" in message
    assert "nothing was written" in message


@pytest.fixture
def against(folder, monkeypatch):
    """Writes a file with the class ``Mine``."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(body, head=MINE):
        (folder / "mine.py").write_text(head + body)
        return folder / "mine.py"

    return write


FORWARD = "    def forward(self, x):\n"
INIT = "    def __init__(self):\n"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (FORWARD + "        return super().forward(x)[:, :9]\n", ["logits", "nothing was written"]),
        (FORWARD + "        return super().forward(x) * 0\n", ["logits", "nothing was written"]),
        (
            INIT + "        super().__init__()\n        self.classifier[3] = nn.Identity()\n",
            ["classifier.3", "nothing was written"],
        ),
        (FORWARD + "        return (super().forward(x),)\n", ["no single tensor of logits"]),
        (FORWARD + "        return {'logits': torch.zeros(len(x), 10)}\n", ["logits"]),
        (FORWARD + "        raise RuntimeError('no\\nway')\n", ["torch's model fails", "no way"]),
        (INIT + "        raise RuntimeError('no\\nway')\n", ["RuntimeError: no way"]),
        (INIT + "        super().__init__(batch_norm=True)\n", ["does not take these weights"]),
        ("    pass\nraise SystemExit(0)\n", ["mine.py"]),
        ("    pass\n)\n", ["SyntaxError"]),
        ("    pass\ndel Mine\n", ["mine.py:Mine", "AttributeError"]),
        ("    pass\nMine = dict\n", ["gives a dict, no module"]),
        (
            "    pass\nclass Mine:\n    def load_state_dict(self, *_, **__):\n        pass\n",
            ["no module"],
        ),
    ],
    ids=[
        "nine classes",
        "zeros",
        "no last ReLU",
        "a tuple",
        "a dict and no layers",
        "forward raises",
        "init raises",
        "other weights",
        "exits",
        "no Python",
        "missing name",
        "a dict",
        "no module but nearly",
    ],
)
def test_another_torch_class_is_told_apart(folder, checkpoints, against, body, words):
    flags = "--against", f"{against(body)}:Mine", "--dry-run"
    message = refused(folder, checkpoints["vgg16"], folder / "out.ckpt", *flags)
    for word in words:
        assert word in message


@pytest.mark.parametrize("value", ["none.py:Mine", "mine.py", "mine.py:", ":Mine"])
def test_a_class_that_is_not_there_is_named(folder, checkpoints, against, monkeypatch, value):
    against("    pass\n")
    monkeypatch.chdir(folder)
    message = refused(folder, checkpoints["vgg16"], folder / "out", "--dry-run", "--against", value)
    assert f"--against {value}" in message


@pytest.mark.parametrize(
    ("body", "head"),
    [
        ("    pass\n", "import beside_mine\n" + MINE),
        (
            "    pass\n@dataclasses.dataclass\nclass Settings:\n    size: int = 3\n",
            "from __future__ import annotations\nimport dataclasses\n" + MINE,
        ),
    ],
    ids=["imports from beside", "with a dataclass"],
)
def test_your_own_torch_class_is_compared(folder, capsys, checkpoints, against, body, head):
    (folder / "beside_mine.py").write_text("")
    flags = "--against", f"{against(body, head)}:Mine"
    port(checkpoints["vgg16"], folder / "out.ckpt", *flags)
    assert f"verified against {folder / 'mine.py'}:Mine on 16 images" in capsys.readouterr().out
    assert (folder / "out.ckpt").exists()


def test_an_infinite_logit_does_not_hide_the_others(folder, modules, against):
    state_dict = modules["vgg16"].state_dict()
    state_dict["classifier.5.bias"] = torch.tensor([float("inf"), *range(9)])
    torch.save(state_dict, folder / "in.ckpt")
    mine = against(FORWARD + "        return super().forward(x) * 1.01\n")
    with np.errstate(invalid="ignore"), pytest.raises(UserError, match="logits"):
        port(folder / "in.ckpt", folder / "out.ckpt", "--against", f"{mine}:Mine")


def test_test_images_are_compared_too(folder, capsys, checkpoints, monkeypatch, rng):
    images = rng.integers(0, 256, (60, 32, 32, 3), np.uint8)
    examples = data.Examples(images, np.zeros(60, np.int32))
    given = []
    dataset = data.Dataset(examples, examples, tuple("abcdefghij"))
    monkeypatch.setattr(data, "load", lambda *args: given.append(args) or dataset)
    port(checkpoints["vgg16"], folder / "out", "--dry-run", "--data-dir", folder)
    assert given == [("cifar10", str(folder))]
    assert "verified against torch on 64 images" in capsys.readouterr().out


def test_adams_state_arrives(folder, capsys):
    module = torch_reference.randomize(create_torch_model("vgg16"))
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-4)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(images), torch.arange(2)).backward()
        optimizer.step()
    content = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}
    torch.save(content, folder / "in.ckpt")
    port(folder / "in.ckpt", folder / "out", "--no-verify", "--report", folder / "report.json")
    assert "took Adam's moments after 2 steps, learning rate 0.0003" in capsys.readouterr().out
    loaded = weights.load(folder / "out")
    assert loaded.adam.count == 2
    assert loaded.learning_rate == 3e-4
    for ours, name in ((loaded.adam.mu, "exp_avg"), (loaded.adam.nu, "exp_avg_sq")):
        moments = {n: optimizer.state[p][name] for n, p in module.named_parameters()}
        theirs, _ = torch_reference.to_flax(moments, module)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
        assert any(leaf.any() for leaf in jax.tree.leaves(ours))
    assert json.loads((folder / "report.json").read_text())["adam_steps"] == 2
    port(folder / "out", folder / "out.ckpt", "--no-verify")
    assert "without Adam's moments: only an Orbax" in capsys.readouterr().out
    assert_same(module.state_dict(), torch.load(folder / "out.ckpt"))


def without(entry):
    adam = hollow_adam()
    del adam["param_groups"][0][entry]
    return adam


def some_of(count):
    adam = hollow_adam()
    adam["state"] = dict(list(adam["state"].items())[:count])
    return adam


def with_sgd(momentum):
    with torch.device("meta"):
        parameters = list(create_torch_model("vgg16").parameters())
    content = torch.optim.SGD(parameters, momentum=momentum, lr=0.1).state_dict()
    for index, parameter in enumerate(parameters if momentum else ()):
        content["state"][index] = {"momentum_buffer": torch.zeros(()).expand(parameter.shape)}
    return content


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: with_sgd(0.9), "is not Adam"),
        (lambda: with_sgd(0), "a state for 0 of 32 parameters"),
        (lambda: hollow_adam(weight_decay=0.01), "has weight_decay 0.01, training has 0"),
        (lambda: hollow_adam(amsgrad=True), "has amsgrad True"),
        (lambda: hollow_adam(betas=(0.5, 0.999)), "has betas (0.5, 0.999)"),
        (lambda: hollow_adam(betas=None), "betas"),
        (lambda: hollow_adam(params=[*range(31), "last"]), ""),
        (lambda: hollow_adam(lr="fast"), ""),
        (lambda: hollow_adam(step=float("nan")), "step"),
        (lambda: hollow_adam(step=1e12), "step"),
        (lambda: hollow_adam(step=float("inf")), ""),
        (lambda: hollow_adam(lr=10**400), ""),
        (lambda: hollow_adam(weight_decay=torch.ones(2)), ""),
        (lambda: hollow_adam(torch.tensor(1 / 3, dtype=torch.float64)), "is float64"),
        (lambda: hollow_adam(torch.zeros(()).to(torch.float8_e4m3fn)), "float8"),
        (lambda: some_of(0), "a state for 0 of 32 parameters"),
        (lambda: some_of(31), "a state for 31 of 32 parameters"),
        (lambda: without("lr"), ""),
        (lambda: without("params"), ""),
        (lambda: hollow_adam() | {"param_groups": [1]}, ""),
        (lambda: hollow_adam() | {"param_groups": "one"}, ""),
        (lambda: hollow_adam() | {"param_groups": None}, "no param_groups"),
        (lambda: hollow_adam() | {"state": {i: {"step": 1} for i in range(32)}}, "is not Adam"),
        (
            lambda: {
                **hollow_adam(),
                "state": {i: {"step": 1, "exp_avg": 0, "exp_avg_sq": 0} for i in range(32)},
            },
            "",
        ),
    ],
    ids=[
        "SGD with momentum",
        "SGD",
        "weight decay",
        "amsgrad",
        "other betas",
        "no betas",
        "a name among the indices",
        "no number for lr",
        "NaN steps",
        "too many steps",
        "infinite steps",
        "endless lr",
        "two weight decays",
        "float64 moments",
        "float8 moments",
        "before the first step",
        "one parameter without",
        "no lr",
        "no params",
        "a number as group",
        "text as groups",
        "no groups",
        "steps alone",
        "numbers as moments",
    ],
)
def test_an_optimizer_that_cannot_be_taken_is_left_with_a_note(folder, capsys, make, words):
    torch.save({"state_dict": hollow(), "optimizer": make()}, folder / "in.ckpt")
    out = takes_quickly(capsys, folder / "in.ckpt")
    assert "left the optimizer: " in out
    assert words in out


@pytest.mark.parametrize("optimizer", [torch.ones(3), torch.ones(1), "adam", [1, 2], {"state": 3}])
def test_what_is_no_optimizer_does_not_stop_the_port(folder, capsys, optimizer):
    torch.save({"state_dict": hollow(), "optimizer": optimizer}, folder / "in.ckpt")
    out = takes_quickly(capsys, folder / "in.ckpt")
    assert "took state_dict" in out
    assert "moments" not in out
    assert "left the optimizer" in out or not isinstance(optimizer, dict | list)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adams_moments_in_half_precision_arrive(folder, capsys, dtype):
    adam = hollow_adam(torch.tensor(0.5, dtype=dtype))
    torch.save({"state_dict": hollow(), "optimizer": adam}, folder / "in.ckpt")
    assert "took Adam's moments after 3 steps" in takes_quickly(capsys, folder / "in.ckpt")
    adam = weights.load(folder / "in.ckpt").adam
    assert all((leaf == 0.5).all() for leaf in jax.tree.leaves(adam.mu))


def test_the_optimizer_is_left_with_averages(folder, capsys):
    content = {"state_dict": hollow(), "ema": hollow(shift=0.5), "optimizer": hollow_adam()}
    torch.save(content, folder / "in.ckpt")
    assert "left optimizer: it belongs to" in takes_quickly(capsys, folder / "in.ckpt", "--ema")
    assert weights.load(folder / "in.ckpt", ema=True).adam is None


def test_without_torch_safetensors_still_port(folder, capsys, checkpoints, modules, monkeypatch):
    save_file(modules["vgg16"].state_dict(), folder / "in.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    for argv in (
        (checkpoints["vgg16"], folder / "out"),
        (folder / "in.safetensors", folder / "out.ckpt"),
        (folder / "in.safetensors", folder / "out", "--against", "mine.py:Mine"),
    ):
        assert "torch 2.6 or newer: make torch" in refused(folder, *argv)
    port(folder / "in.safetensors", folder / "orbax")
    port(folder / "orbax", folder / "out.safetensors")
    assert "not verified against torch, which is not installed" in capsys.readouterr().out
    monkeypatch.undo()
    assert_read(folder / "orbax", modules["vgg16"].state_dict())
    assert_read(folder / "out.safetensors", modules["vgg16"].state_dict())


def run(*argv):
    return subprocess.run([sys.executable, TOOL, *argv], capture_output=True, text=True)


def test_the_command_ports(folder, checkpoints, modules):
    done = run(checkpoints["vgg16"], folder / "out.safetensors")
    assert done.returncode == 0
    assert done.stderr == ""
    assert f"wrote {folder / 'out.safetensors'} (safetensors)" in done.stdout
    assert_read(folder / "out.safetensors", modules["vgg16"].state_dict())


@pytest.mark.parametrize("case", ["missing file", "hostile file"])
def test_the_command_fails_in_one_line(folder, case):
    if case == "hostile file":
        torch.save({"a": Runs(os.system, f"touch {folder / 'ran'}")}, folder / "in.ckpt")
    before = listing(folder)
    failed = run(folder / "in.ckpt", folder / "out")
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert failed.stderr.startswith("port_torch_ckpt: error: ")
    assert failed.stderr.count("\n") == 1
    assert "in.ckpt" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert listing(folder) == before


def test_evaluation_is_the_same_from_each_format(folder, capsys, checkpoints, monkeypatch):
    paths = [checkpoints["vgg16"], folder / "out", folder / "out.safetensors"]
    for path in paths[1:]:
        port(checkpoints["vgg16"], path, "--no-verify")
    digits = data.load("digits")
    few = digits._replace(test=data.Examples(digits.test.images[:60], digits.test.labels[:60]))
    monkeypatch.setattr(data, "load", lambda *_: few)
    capsys.readouterr()
    printed = []
    for path in paths:
        evaluate.main(["--checkpoint", str(path), "--dataset", "digits", "--batch-size", "60"])
        out, error = capsys.readouterr()
        assert error == ""
        printed.append(out)
    assert printed[0].startswith("vgg16 on 60 test images of digits\n")
    assert "Accuracy of the model on the test images: " in printed[0]
    assert len(set(printed)) == 1
