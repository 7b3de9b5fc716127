"""Random command lines end with exit code 0 or 2, and never with a traceback."""

import contextlib
import dataclasses
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxcifar import cli, evaluate, export, predict, report, train
from jaxcifar import port as port_torch_ckpt
from jaxcifar.config import TrainConfig, choices, flag, without_none
from jaxcifar.errors import UserError
from jaxcifar.runtime import process as runtime

# What an operating system can pass: no NUL, no lone surrogates.
text = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)
words = st.one_of(
    text,
    st.integers(-3, 300).map(str),
    st.floats().map(str),
    st.sampled_from(["1/0", "1e999", "nan", "-1", "0x10", "auto", "localhost:1", "[::1]:99999"]),
    st.sampled_from([name for f in dataclasses.fields(TrainConfig) for name in choices(f.type)]
                    + ["vgg16", "digits", "cifar100", "folder:.", "folder:~x"]
                    + [".", "/", "/dev/null", "README.md"]),
)  # fmt: skip


def flags(config_type):
    names = [flag(f.name) for f in dataclasses.fields(config_type)]
    names += ["--no-compile-cache", "--help", "--", "--unknown"]
    one = st.tuples(st.sampled_from(names), words).map(list) | st.lists(words, max_size=1)
    return st.lists(one, max_size=6).map(lambda parts: [word for part in parts for word in part])


def run(main, argv):
    """Exit code and what was printed to stderr."""
    errors = io.StringIO()
    with (
        contextlib.redirect_stderr(errors),
        contextlib.redirect_stdout(io.StringIO()),
        pytest.raises(SystemExit) as end,
    ):
        cli.run(lambda _: main(argv), prog="fuzz")
    return end.value.code, errors.getvalue()


fuzz = settings(
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def no_work(monkeypatch, tmp_path):
    """Everything up to the first computation is real."""

    def stop(*args, **kwargs):
        raise UserError("the work would begin here")

    monkeypatch.setattr(train, "_prepare", stop)
    monkeypatch.setattr(runtime, "join", stop)
    monkeypatch.setattr(train.workdir, "locked", contextlib.nullcontext)
    monkeypatch.setattr(cli.signal, "signal", lambda *args: None)
    monkeypatch.chdir(tmp_path)


@fuzz
@given(argv=flags(TrainConfig))
def test_train(argv):
    code, errors = run(train.main, argv)
    assert code in (0, 2)
    assert code == 0 or errors.splitlines()[-1].startswith("fuzz: error: ")


@pytest.mark.parametrize(
    ("main", "config"),
    [
        (evaluate.main, evaluate.EvaluateConfig),
        (report.main, report.ReportConfig),
        (export.main, export.ExportConfig),
        (predict.main, predict.PredictConfig),
        (port_torch_ckpt.main, port_torch_ckpt.PortConfig),
    ],
)
@fuzz
@given(data=st.data())
def test_other_commands(main, config, data):
    code, _ = run(main, data.draw(flags(config)))
    assert code in (0, 2)


@fuzz
@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            f.name: st.one_of(st.integers(-2, 9), st.floats(), st.booleans(), text, st.none())
            for f in dataclasses.fields(TrainConfig)
        },
    )
)
def test_configuration(values):
    """The library call: every value is accepted or refused in words."""
    with contextlib.suppress(UserError):
        config = TrainConfig(**values)
        assert without_none(type(config.epochs)) is int
