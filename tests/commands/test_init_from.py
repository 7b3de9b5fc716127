"""Runs that start from given weights."""

import shutil

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from jaxcifar import data, evaluate, train
from jaxcifar.config import TrainConfig
from jaxcifar.core.models import abstract_variables, create_model, head
from jaxcifar.core.state import with_new_head
from jaxcifar.errors import UserError
from jaxcifar.files import torch_files, weights
from jaxcifar.files import torch_names as torch_port
from jaxcifar.train import train_and_evaluate
from tests.conftest import load_few_digits

pytestmark = pytest.mark.usefixtures("few_digits")
STEPS = 5


def config(workdir, **changes):
    options = {"model": "resnet50_layer4", "dataset": "digits", "batch_size": 8, "report": False}
    return TrainConfig(workdir=str(workdir), **{**options, **changes})


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run; what it leaves is the source of others."""
    with pytest.MonkeyPatch.context() as patch:
        load_few_digits(patch)
        return train_and_evaluate(config(tmp_path_factory.mktemp("first") / "run"))


def torch_optimizer(adam, model, learning_rate):
    """Adam's state as ``torch.optim.Adam.state_dict`` has it."""
    import torch

    mu, nu = (torch_port.torch_view({"params": moment}) for moment in (adam.mu, adam.nu))
    keys = [key for key, leaf in torch_port.leaves(model).items() if leaf.path[0] == "params"]
    state = {
        index: {
            "step": torch.tensor(float(adam.count)),
            "exp_avg": torch.tensor(mu[key]),
            "exp_avg_sq": torch.tensor(nu[key]),
        }
        for index, key in enumerate(keys)
    }
    group = {"lr": learning_rate, "betas": (0.9, 0.999), "eps": 1e-8, "params": list(state)}
    return {"state": state, "param_groups": [group]}


def test_every_source_starts_the_same_run(run, tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    loaded = weights.load(run.workdir)
    assert loaded.adam.count == STEPS
    capsys.readouterr()
    loaded.tell("run")
    assert capsys.readouterr().err == ""  # only who trains on is told of Adam
    assert_same(loaded.variables["params"], run.state.params)
    weights.save(tmp_path / "ported", loaded, {})
    tensors = {key: torch.from_numpy(array) for key, array in weights.to_torch(loaded).items()}
    optimizer = torch_optimizer(loaded.adam, loaded.build(), 3e-4)
    torch.save({"model": tensors, "optimizer": optimizer}, tmp_path / "torch.ckpt")

    states = []
    for source in (run.workdir, tmp_path / "ported", tmp_path / "torch.ckpt"):
        given = None if source.suffix == ".ckpt" else 3e-4
        options = {"init_from": str(source), "learning_rate": given}
        history = train_and_evaluate(config(tmp_path / f"of {source.name}", **options))
        states.append(history.state)
        assert history.records[0]["learning_rate"] == pytest.approx(3e-4)
    notes = capsys.readouterr().err
    assert "took Adam's moments after 5 steps, learning rate starts anew" in notes
    assert "took Adam's moments after 5 steps, learning rate 0.0003" in notes
    for state in states:
        assert state.step == STEPS  # a new run
        assert state.opt_state[0].count == 2 * STEPS  # whose Adam goes on
        assert_same(state.params, states[0].params)
        assert_same(state.batch_stats, states[0].batch_stats)


def test_the_names_of_the_classes_travel(run, tmp_path):
    loaded = weights.load(run.workdir)
    assert loaded.class_names == tuple("0123456789")
    for name in ("folder", "file.safetensors"):
        path = tmp_path / name
        weights.write(path, loaded, weights.format_of(path), {})
        assert weights.load(path).class_names == loaded.class_names
    for bad in ("{", '["one"]', "7"):
        torch_files.write_safetensors(path, weights.to_torch(loaded), {"class_names": bad})
        assert weights.load(path).class_names is None


def test_weights_alone_start_a_fresh_adam(run, tmp_path):
    path = tmp_path / "weights.safetensors"
    torch_files.write_safetensors(path, weights.to_torch(weights.load(run.workdir)), {})
    options = {"init_from": str(path), "learning_rate": 1e-30}  # too small to move anything
    started = train_and_evaluate(config(tmp_path / "started", **options)).state
    assert_same(started.params, run.state.params)
    assert started.opt_state[0].count == STEPS
    counts = torch_port.torch_view({"batch_stats": started.batch_stats})
    assert counts["layer1.1.num_batches_tracked"] == 2 * STEPS
    saved = TrainConfig.from_json(tmp_path / "started" / "config.json")
    assert (saved.init_from, saved.learning_rate) == (str(path), 1e-30)


def test_a_learning_rate_is_taken_from_torch_unless_given(tmp_path):
    theirs = weights.Weights("vgg16", 10, {}, None, 3e-4, {}, ())
    alone = theirs._replace(learning_rate=None)
    for given, initial, expected in (
        (None, None, 1e-3),
        (None, alone, 1e-3),
        (None, theirs, 3e-4),
        (1e-5, theirs, 1e-5),
    ):
        started = TrainConfig(learning_rate=given)
        assert train._learning_rate(started, tmp_path, initial) == expected
    stopped = theirs._replace(learning_rate=0.0)
    with pytest.raises(UserError, match="a learning rate of 0: give --learning-rate"):
        train._learning_rate(TrainConfig(init_from="a"), tmp_path, stopped)
    saved = TrainConfig(learning_rate=3e-4)
    (tmp_path / "config.json").write_text(saved.to_json())
    resumed = TrainConfig(resume=True, workdir=str(tmp_path))
    assert train._learning_rate(resumed, tmp_path, None) == 3e-4


def test_a_resumed_run_does_not_read_them_again(run, tmp_path):
    source = shutil.copytree(run.workdir, tmp_path / "source")
    begun = train_and_evaluate(config(tmp_path / "run", init_from=str(source)))
    shutil.rmtree(source)
    resumed = train_and_evaluate(
        config(tmp_path / "run", init_from=str(source), resume=True, epochs=2)
    )
    assert (begun.state.step, resumed.state.step) == (STEPS, 2 * STEPS)


def test_what_does_not_fit_is_refused(run, tmp_path, capsys):
    source = {"init_from": str(run.workdir)}
    with pytest.raises(UserError, match="is resnet50_layer4, not vgg16: ask for --model resnet"):
        train_and_evaluate(config(tmp_path / "a", model="vgg16", **source))
    loaded = weights.load(run.workdir)
    head = loaded.variables["params"]["fc"]
    head["kernel"], head["bias"] = head["kernel"][:, :7], head["bias"][:7]
    weights.save(tmp_path / "seven", loaded._replace(adam=None, num_classes=7), {})
    with pytest.raises(UserError, match="seven has 7 classes, digits has 10"):
        evaluate.main(["--checkpoint", str(tmp_path / "seven"), "--dataset", "digits"])
    with pytest.raises(UserError, match="--ema is for torch files"):
        train_and_evaluate(config(tmp_path / "a", ema=True, **source))
    with pytest.raises(UserError, match="--ema chooses among the weights of --init-from"):
        train.main(["--ema"])
    with pytest.raises(FileNotFoundError):
        train_and_evaluate(config(tmp_path / "b", init_from=str(tmp_path / "none.ckpt")))
    assert not (tmp_path / "b").exists()


def few_named(monkeypatch, names):
    """Makes every data set the few digits that have one of these names."""
    few = data.load("digits")

    def of(examples):
        return data.Examples(*(array[examples.labels < len(names)] for array in examples))

    chosen = data.Dataset(of(few.train), of(few.test), names)
    monkeypatch.setattr(data, "load", lambda name, data_dir=None: chosen)


def without_head(tree):
    return {name: leaf for name, leaf in tree.items() if name != "fc"}


def test_a_head_for_other_classes_starts_anew(run, tmp_path, monkeypatch, capsys):
    few_named(monkeypatch, ("ant", "bee", "cat"))
    options = {"init_from": str(run.workdir), "learning_rate": 1e-3}
    loaded = weights.load(run.workdir)
    of_run, started, _ = train._prepare(config(tmp_path, **options), tmp_path, loaded)
    line = f"{run.workdir} has 10 classes, digits has 3: the head fc starts anew\n"
    assert capsys.readouterr().err.count(line) == 1
    assert of_run.class_names == ("ant", "bee", "cat")
    assert_same(without_head(started.params), without_head(run.state.params))
    assert_same(without_head(started.opt_state[0].mu), without_head(run.state.opt_state[0].mu))
    kernel = np.asarray(started.params["fc"]["kernel"])
    bound = np.sqrt(6 / (1024 + 3))  # xavier's
    assert kernel.shape == (1024, 3)
    assert 0.9 * bound < np.abs(kernel).max() <= bound
    with pytest.raises(UserError, match=r"run has 10 classes, digits has 3$"):
        evaluate.main(["--checkpoint", str(run.workdir)])


def test_moments_of_a_new_head_are_zero_and_others_stay():
    old, new = (create_model("vgg16", num_classes=classes) for classes in (10, 3))
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), abstract_variables(old))
    adam = optax.ScaleByAdamState(np.int32(7), ones["params"], ones["params"])
    variables, moments = with_new_head(jax.random.key(0), ones, adam, new)
    shapes = [jax.tree.map(np.shape, tree) for tree in (variables, abstract_variables(new))]
    assert shapes[0] == shapes[1]
    assert moments.count == 7
    path = head(new)
    assert path == ("classifier", "5")
    for tree, expected in ((variables["params"], None), (moments.mu, 0), (moments.nu, 0)):
        for leaf, value in flatten_dict(tree).items():
            if leaf[:-1] != path:
                assert np.all(value == 1)
            elif expected is None:
                assert np.std(value) > 0
            else:
                assert np.all(value == 0)
    assert with_new_head(jax.random.key(0), ones, None, new)[1] is None


def test_as_many_classes_of_other_names_are_warned_of(run, tmp_path, monkeypatch, capsys):
    digits = tuple("0123456789")
    for names, differ in (
        ((*digits[:9], "nine"), f"only in {run.workdir}: 9; only in digits: nine"),
        (digits[::-1], "they are in another order"),
        (digits, None),
    ):
        few_named(monkeypatch, names)
        evaluate.main(["--checkpoint", str(run.workdir), "--batch-size", "7"])
        loaded = weights.load(run.workdir)
        started = config(tmp_path, init_from=str(run.workdir))
        key = jax.random.key(0)
        assert train._fitted(started, loaded, loaded.build(), names, key) is loaded
        loaded._replace(class_names=None).warn_of_names("a", "b", ("c",) * 10)
        error = capsys.readouterr().err
        assert error.count("Warning") == (2 if differ else 0)
        assert differ is None or error.count(f"those of digits: {differ}\n") == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    model = create_model("vgg16")
    variables = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_variables(model)
    )
    weights.save(
        tmp_path / "ported", weights.Weights("vgg16", 10, variables, None, None, {}, ()), {}
    )
    assert weights.load(tmp_path / "ported").model == "vgg16"
    file = max((tmp_path / "ported").rglob("*"), key=lambda path: path.stat().st_size)
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(UserError, match=f"{file.name} is damaged or missing: copy the whole"):
        weights.load(tmp_path / "ported")


def test_evaluate_prints_what_training_printed(run, capsys):
    printed = f"Accuracy of the model on the test images: {100 * run.test_accuracy:.2f} %"
    capsys.readouterr()
    evaluate.main(["--checkpoint", str(run.workdir), "--batch-size", "7"])
    first, accuracy, *_ = capsys.readouterr().out.splitlines()
    assert accuracy == printed
    assert first == "resnet50_layer4 on 20 test images of digits"
