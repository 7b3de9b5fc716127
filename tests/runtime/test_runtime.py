"""What a process asks of the C library, and the dispatch of steps in chunks."""

import platform
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcifar import train
from jaxcifar.config import TrainConfig
from jaxcifar.core import steps
from jaxcifar.runtime import process as runtime


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept():
    """100 MB allocated again and again: no page is fetched twice."""
    code = """
import resource
from jaxcifar.runtime import process as runtime
runtime.prepare()
import numpy as np
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(100_000_000, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(); default = faults()
runtime.keep_freed_memory()
faults(); print(default, faults())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    default, kept = map(int, out.stdout.split())
    assert kept < 100
    assert kept < default / 10


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: object())
    runtime.prepare()
    runtime.keep_freed_memory()


@given(
    step=st.integers(0, 400),
    per_epoch=st.integers(1, 50),
    log_every=st.integers(1, 60),
    checkpoint_every=st.integers(0, 60),
)
def test_chunks_end_where_something_is_due(step, per_epoch, log_every, checkpoint_every):
    config = TrainConfig(log_every=log_every, checkpoint_every=checkpoint_every)

    def due(step):
        done = step % per_epoch or per_epoch
        return (
            done == per_epoch
            or done % log_every == 0
            or bool(checkpoint_every and step % checkpoint_every == 0)
        )

    count = train._steps_to_pause(config, step, per_epoch)
    assert count >= 1
    assert due(step + count)
    assert not any(due(step + i) for i in range(1, count))


@pytest.mark.slow
def test_an_epoch_in_chunks_never_waits(few_digits, tmp_path, monkeypatch):
    """As on an accelerator: one dispatch for each report, read only after the next one."""
    import jax

    options = {
        "model": "resnet50_layer4",
        "dataset": "digits",
        "batch_size": 5,
        "report": False,
        "epochs": 2,
    }
    options["learning_rate"] = 1e-6  # at 1e-3 Adam's division turns rounding into another run
    config = TrainConfig(**options, log_every=4, workdir=str(tmp_path / "one"))
    one_by_one = train.train_and_evaluate(config)

    events = []
    real_steps, real_means = steps.train_steps_at, steps.Metrics.means

    def dispatched(*args, count, **kwargs):
        events.append(count)
        with jax.transfer_guard("disallow"):  # nothing but what is on the device already
            return real_steps(*args, count=count, **kwargs)

    def read(metrics):
        events.append("read")
        return real_means(metrics)

    monkeypatch.setattr(steps, "train_steps_at", dispatched)
    monkeypatch.setattr(steps.Metrics, "means", read)
    monkeypatch.setattr(runtime, "computes_on_cpu", lambda: False)
    config = TrainConfig(**options, log_every=4, workdir=str(tmp_path / "chunks"))
    in_chunks = train.train_and_evaluate(config)

    epoch = [4, 4, "read", "read"]
    assert events == [*epoch, *epoch]
    assert [r["step"] for r in in_chunks.records] == [r["step"] for r in one_by_one.records]
    first, other = in_chunks.records[0], one_by_one.records[0]
    assert first["loss"] == pytest.approx(other["loss"], rel=1e-3)  # test_steps has the proof


@pytest.mark.parametrize(("flags", "warned"), [("sse2 avx2", 1), ("sse2 avx512_bf16", 0), ("", 0)])
def test_warning_without_bfloat16_instructions(flags, warned, monkeypatch, capsys):
    monkeypatch.setattr(runtime, "cpu_flags", lambda: flags)
    runtime.warn_of_slow_bfloat16()
    assert capsys.readouterr().err.count("no bfloat16 instructions") == warned
