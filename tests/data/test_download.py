"""The download: found afterwards, and refused in words where there is no server or no answer."""

import hashlib
import shutil
import socket
import time
from pathlib import Path

import pooch
import pytest
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.utils import Size

from jaxcifar.data import cifar
from jaxcifar.data.cifar import CIFAR10
from tests.data.cifar_files import assert_equal, make_dataset, refusal, write

# The download library leaves its idle connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
BINARY = CIFAR10.archives[1]


def register(monkeypatch, url, content=b""):
    """Make TFDS know another address of CIFAR-10."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    checksum = hashlib.sha256(content).hexdigest()
    info = UrlInfo(size=Size(len(content)), checksum=checksum, filename=BINARY)
    monkeypatch.setattr(cifar.tfds.builder_cls("cifar10"), "url_infos", {url: info})


@pytest.mark.parametrize("silent", [False, True])
def test_without_an_answer_there_is_no_long_wait(silent, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "SECONDS", 1.0)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if silent:
            listener.listen()
        register(monkeypatch, f"http://127.0.0.1:{listener.getsockname()[1]}/{BINARY}")
        start = time.monotonic()
        message = refusal(cifar.load, CIFAR10, tmp_path / "data")
    assert time.monotonic() - start < 10
    for advice in (f"Put {BINARY}", str(tmp_path / "data"), "--data-dir", "--dataset digits"):
        assert advice in message
    assert not list((tmp_path / "data").glob("downloads/*"))


def test_a_failed_download_can_be_repeated_and_a_good_one_is_found(tmp_path, rng, monkeypatch):
    dataset, calls = make_dataset(rng), [b"another file", b""]
    source = write(tmp_path / "official", dataset)
    archive = tmp_path / "official" / BINARY
    register(monkeypatch, "http://nowhere.invalid/", archive.read_bytes())

    def download(url, output, _):
        shutil.copyfile(archive, output)
        with Path(output).open("ab") as file:
            file.write(calls.pop(0))

    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **options: download)
    assert "hash" in refusal(cifar.load, source, tmp_path / "data")
    for _ in range(2):
        assert_equal(cifar.load(source, tmp_path / "data"), dataset)
    assert calls == []
