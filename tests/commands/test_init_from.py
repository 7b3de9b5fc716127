"""Runs that start from given weights."""

import shutil

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from jaxcifar import TrainConfig, UserError, cli, create_model, data, train_and_evaluate
from jaxcifar.core.models import abstract_variables, head
from jaxcifar.core.state import replace_head
from jaxcifar.files import torch_files, torch_names, weights
from jaxcifar.files.run import RunDirectory
from jaxcifar.runtime import setup
from tests.conftest import assert_same, run_config, use_few_digits

pytestmark = [pytest.mark.usefixtures("few_digits"), pytest.mark.slow]
STEPS = 5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run; what it leaves is the source of others."""
    with pytest.MonkeyPatch.context() as patch:
        use_few_digits(patch)
        return train_and_evaluate(run_config(tmp_path_factory.mktemp("first") / "run"))


def torch_optimizer(adam, model, learning_rate):
    """Adam's state as ``torch.optim.Adam.state_dict`` has it."""
    import torch

    mu, nu = (torch_names.torch_view({"params": moment}) for moment in (adam.mu, adam.nu))
    keys = [key for key, leaf in torch_names.leaves(model).items() if leaf.path[0] == "params"]
    moments = [{"exp_avg": torch.tensor(mu[k]), "exp_avg_sq": torch.tensor(nu[k])} for k in keys]
    state = {i: each | {"step": torch.tensor(float(adam.count))} for i, each in enumerate(moments)}
    group = {"lr": learning_rate, "betas": (0.9, 0.999), "eps": 1e-8, "params": list(state)}
    return {"state": state, "param_groups": [group]}


def test_every_source_starts_the_same_run(run, tmp_path, caplog):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    caplog.set_level("INFO")
    weights.load(run.workdir)
    assert caplog.text == ""  # only those who train on hear of Adam
    loaded = weights.load(run.workdir, optimizer=True)
    assert loaded.adam.count == STEPS
    assert_same(loaded.variables["params"], run.state.params)
    weights.write(tmp_path / "ported", loaded, "orbax", {})
    tensors = {key: torch.from_numpy(array) for key, array in weights.to_torch(loaded).items()}
    optimizer = torch_optimizer(loaded.adam, loaded.build(), 3e-4)
    torch.save({"model": tensors, "optimizer": optimizer}, tmp_path / "torch.ckpt")

    states = []
    for source in (run.workdir, tmp_path / "ported", tmp_path / "torch.ckpt"):
        rate = None if source.suffix == ".ckpt" else 3e-4
        options = {"init_from": str(source), "learning_rate": rate}
        history = train_and_evaluate(run_config(tmp_path / f"of {source.name}", **options))
        states.append(history.state)
        assert history.records[0]["learning_rate"] == pytest.approx(3e-4)
    assert "Adam's moments after 5 steps, learning rate 0.0003" in caplog.text
    for state in states:
        assert state.step == STEPS  # a new run
        assert state.opt_state[0].count == 2 * STEPS  # whose Adam continues
        assert_same(state.params, states[0].params)
        assert_same(state.batch_stats, states[0].batch_stats)


def test_weights_alone_start_a_fresh_adam(run, tmp_path):
    path = tmp_path / "weights.safetensors"
    torch_files.write_safetensors(path, weights.to_torch(weights.load(run.workdir)), {})
    options = {"init_from": str(path), "learning_rate": 1e-30}  # too small to move anything
    started = train_and_evaluate(run_config(tmp_path / "started", **options)).state
    assert_same(started.params, run.state.params)
    assert started.opt_state[0].count == STEPS
    counts = torch_names.torch_view({"batch_stats": started.batch_stats})
    assert counts["layer1.1.num_batches_tracked"] == 2 * STEPS
    saved = RunDirectory(tmp_path / "started").read_config()
    assert (saved.init_from, saved.learning_rate) == (str(path), 1e-30)


def test_the_learning_rate_is_torchs_unless_given():
    with_rate = weights.Weights(model="vgg16", num_classes=10, variables={}, learning_rate=3e-4)
    alone = with_rate._replace(learning_rate=None)
    for given, saved, initial, expected in (
        (None, {}, None, 1e-3),
        (None, {}, alone, 1e-3),
        (None, {}, with_rate, 3e-4),
        (1e-5, {}, with_rate, 1e-5),
        (None, {"learning_rate": 0.5}, None, 0.5),  # of the resumed run
    ):
        assert setup.learning_rate(TrainConfig(learning_rate=given), saved, initial) == expected
    stopped = with_rate._replace(learning_rate=0.0)
    with pytest.raises(UserError, match="a learning rate of 0: pass --learning-rate"):
        setup.learning_rate(TrainConfig(init_from="a"), {}, stopped)


def test_a_resumed_run_does_not_read_the_source_again(run, tmp_path):
    source = shutil.copytree(run.workdir, tmp_path / "source")
    begun = train_and_evaluate(run_config(tmp_path / "run", init_from=str(source)))
    shutil.rmtree(source)
    options = {"init_from": str(source), "resume": True, "epochs": 2}
    resumed = train_and_evaluate(run_config(tmp_path / "run", **options))
    assert (begun.state.step, resumed.state.step) == (STEPS, 2 * STEPS)


def test_weights_that_do_not_fit_are_refused(run, tmp_path):
    source = {"init_from": str(run.workdir)}
    with pytest.raises(UserError, match="is resnet50_layer4, not vgg16"):
        train_and_evaluate(run_config(tmp_path / "a", model="vgg16", **source))
    with pytest.raises(UserError, match="--ema is for torch files"):
        train_and_evaluate(run_config(tmp_path / "a", ema=True, **source))
    with pytest.raises(FileNotFoundError):
        train_and_evaluate(run_config(tmp_path / "b", init_from=str(tmp_path / "none.ckpt")))
    assert not (tmp_path / "b").exists()


def use_named_digits(monkeypatch, names):
    """Make every data set the few digits that have one of these names."""
    splits = [
        data.Examples(*(array[split.labels < len(names)] for array in split))
        for split in data.load("digits")[:2]
    ]
    named = data.Dataset(*splits, names)
    monkeypatch.setattr(data, "load", lambda name, data_dir=None: named)


def test_a_head_for_other_classes_is_reinitialised(run, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    use_named_digits(monkeypatch, ("ant", "bee", "cat"))
    config = run_config(tmp_path, init_from=str(run.workdir), learning_rate=1e-3)
    loaded = weights.load(run.workdir, optimizer=True)
    prepared, started, _ = setup.prepare(config, RunDirectory(tmp_path), loaded)
    line = f"{run.workdir} has 10 classes, digits has 3: reinitialising the head (fc)"
    assert caplog.messages.count(line) == 1
    assert prepared.metadata["class_names"] == ["ant", "bee", "cat"]
    first, second = (
        {name: leaf for name, leaf in tree.items() if name != "fc"}
        for tree in (started.params, run.state.params)
    )
    assert_same(first, second)
    kernel = np.asarray(started.params["fc"]["kernel"])
    bound = np.sqrt(6 / (1024 + 3))  # xavier's
    assert kernel.shape == (1024, 3)
    assert 0.9 * bound < np.abs(kernel).max() <= bound
    with pytest.raises(UserError, match=r"run has 10 classes, digits has 3$"):
        cli.call("evaluate", ["--checkpoint", str(run.workdir)])


def test_moments_of_a_new_head_are_zero_and_others_stay():
    old, new = (create_model("vgg16", num_classes=classes) for classes in (10, 3))
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), abstract_variables(old))
    adam = optax.ScaleByAdamState(np.int32(7), ones["params"], ones["params"])
    variables, moments = replace_head(jax.random.key(0), ones, adam, new)
    shapes = [jax.tree.map(np.shape, tree) for tree in (variables, abstract_variables(new))]
    assert shapes[0] == shapes[1]
    assert moments.count == 7
    assert head(new) == ("classifier", "5")
    for tree in (variables["params"], moments.mu, moments.nu):
        for path, value in flatten_dict(tree).items():
            if path[:-1] != head(new):
                assert np.all(value == 1)
            elif tree is variables["params"]:
                assert np.std(value) > 0
            else:
                assert np.all(value == 0)
    assert replace_head(jax.random.key(0), ones, None, new)[1] is None


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        ((*"012345678", "nine"), "only in {run}: 9; only in digits: nine"),
        (tuple("9876543210"), "they are in another order"),
        (tuple("0123456789"), None),
    ],
)
def test_as_many_classes_of_other_names_are_warned_of(
    names, difference, run, monkeypatch, caplog, tmp_path
):
    use_named_digits(monkeypatch, names)
    cli.call("evaluate", ["--checkpoint", str(run.workdir), "--batch-size", "7"])
    loaded = weights.load(run.workdir)
    config = run_config(tmp_path, init_from=str(run.workdir))
    key = jax.random.key(0)
    assert setup._fit_classes(config, loaded, loaded.build(), names, key) is loaded
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == (2 if difference else 0)
    assert all(line.endswith(difference.format(run=run.workdir)) for line in warnings)
