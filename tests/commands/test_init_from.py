"""Runs that start from given weights."""

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from jaxcifar import cli, create_model, data, train_and_evaluate
from jaxcifar.core.models import abstract_variables, head
from jaxcifar.core.state import replace_head
from jaxcifar.files import torch_files, torch_names, weights
from jaxcifar.files.run import RunDirectory
from jaxcifar.runtime import setup
from tests.conftest import SMALL, TINY, assert_same, run_config, use_few_digits
from tests.tiny import Small

pytestmark = [pytest.mark.usefixtures("few_digits"), pytest.mark.slow]
STEPS = 5


def train(workdir, **changes):
    return train_and_evaluate(run_config(workdir, model=SMALL, **changes))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run; what it leaves is the source of others."""
    with pytest.MonkeyPatch.context() as patch:
        use_few_digits(patch)
        return train(tmp_path_factory.mktemp("first") / "run")


def test_a_run_and_its_weights_start_the_same_run(run, tmp_path, caplog):
    caplog.set_level("INFO")
    weights.load(run.workdir, model=SMALL)
    assert caplog.text == ""  # only those who train on hear of Adam
    loaded = weights.load(run.workdir, model=SMALL, optimizer=True)
    assert loaded.adam.count == STEPS
    assert_same(loaded.variables["params"], run.state.params)
    weights.write(tmp_path / "ported", loaded, "orbax", {})
    first, second = (
        train(tmp_path / f"of {source.name}", init_from=str(source)).state
        for source in (run.workdir, tmp_path / "ported")
    )
    assert "Adam's moments after 5 steps" in caplog.text
    assert first.step == STEPS  # a new run
    assert first.opt_state[0].count == 2 * STEPS  # whose Adam continues
    assert_same(first, second)


def test_weights_alone_start_a_fresh_adam_and_are_not_read_again(run, tmp_path):
    path, workdir = tmp_path / "weights.safetensors", tmp_path / "started"
    torch_files.write_safetensors(
        path, weights.to_torch(weights.load(run.workdir, model=SMALL)), {}
    )
    options = {"init_from": str(path), "learning_rate": 1e-30}  # too small to move anything
    started = train(workdir, **options).state
    path.unlink()
    resumed = train(workdir, **options, resume=True, epochs=2).state
    for state, steps in ((started, STEPS), (resumed, 2 * STEPS)):
        assert_same(state.params, run.state.params)
        assert state.step == state.opt_state[0].count == steps
        counts = torch_names.torch_view({"batch_stats": state.batch_stats})
        assert counts["norm.num_batches_tracked"] == STEPS + steps
    saved = RunDirectory(workdir).read_config()
    assert (saved.init_from, saved.learning_rate) == (str(path), 1e-30)


def prepare(workdir, **changes):
    config = run_config(workdir, model=SMALL, **changes)
    return setup.prepare(config, RunDirectory.for_run(config))[0]


def test_the_learning_rate_is_torchs_unless_given(run, tmp_path, monkeypatch):
    loaded = weights.load(run.workdir, model=SMALL)
    rates = (None, None, 1e-3), (None, 3e-4, 3e-4), (None, 0.0, 1e-3), (1e-5, 3e-4, 1e-5)
    for given, of_torch, expected in rates:
        initial = loaded._replace(learning_rate=of_torch)
        monkeypatch.setattr(weights, "load", lambda *_, initial=initial, **__: initial)
        prepared = prepare(tmp_path, learning_rate=given, init_from="a")
        assert prepared.config.learning_rate == expected


def test_moments_of_a_new_head_are_zero_and_others_stay():
    old, new = Small(num_classes=10), Small(num_classes=3)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), abstract_variables(old))
    adam = optax.ScaleByAdamState(np.int32(7), ones["params"], ones["params"])
    variables, moments = replace_head(jax.random.key(0), ones, adam, new)
    shapes = [jax.tree.map(np.shape, tree) for tree in (variables, abstract_variables(new))]
    assert shapes[0] == shapes[1]
    assert moments.count == 7
    assert head(create_model("vgg16")) == ("classifier", "5")
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
        ((*"abcdefghi", "jay"), "only in {source}: j; only in digits: jay"),
        (tuple("jihgfedcba"), "they are in another order"),
        (tuple("abcdefghij"), None),
    ],
)
def test_as_many_classes_of_other_names_are_warned_of(
    names, difference, checkpoint, monkeypatch, caplog, tmp_path
):
    renamed = data.load("digits")._replace(class_names=names)
    monkeypatch.setattr(data, "load", lambda name, data_dir=None, **options: renamed)
    source = str(checkpoint)
    options = f"--model {TINY} --dataset digits --batch-size 7 --checkpoint {source}"
    cli.call("evaluate", options.split())
    config = run_config(tmp_path, model=TINY, init_from=source)
    setup.prepare(config, RunDirectory.for_run(config))
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == (2 if difference else 0)
    assert all(line.endswith(difference.format(source=source)) for line in warnings)
