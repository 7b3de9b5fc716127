"""The download, against a server on loopback that works, lies, breaks off or is silent."""

import hashlib
import http.server
import socket
import threading
import time

import pytest
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.utils import Size

from jaxcifar.data import cifar
from jaxcifar.data.archives import CIFAR10
from tests.data.cifar_files import assert_equal, make_dataset, refusal, write

# The download library leaves its idle connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
BINARY = CIFAR10.archives[1]


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends the first ``server.sent`` bytes of an archive, and promises all."""

    def do_GET(self):
        self.server.gets += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[: self.server.sent])
        self.close_connection = True

    def log_message(self, *args):
        pass


def register(monkeypatch, port, content=b""):
    """Make TFDS know another address of CIFAR-10."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    checksum = hashlib.sha256(content).hexdigest()
    info = UrlInfo(size=Size(len(content)), checksum=checksum, filename=BINARY)
    builder = cifar.tfds.builder_cls("cifar10")
    monkeypatch.setattr(builder, "url_infos", {f"http://127.0.0.1:{port}/{BINARY}": info})


@pytest.fixture
def server(rng, tmp_path, monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.status, server.sent, server.gets = 200, None, 0
        server.dataset = make_dataset(rng)
        server.source = write(tmp_path / "official", server.dataset)
        server.content = (tmp_path / "official" / BINARY).read_bytes()
        register(monkeypatch, server.server_port, server.content)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def assert_fails(data_dir, source=CIFAR10):
    start = time.monotonic()
    message = refusal(cifar.load, source, data_dir)
    assert time.monotonic() - start < 10
    for advice in (f"Put {BINARY}", str(data_dir), "--data-dir", "--dataset digits"):
        assert advice in message
    assert not list(data_dir.glob("downloads/*"))
    return message


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [("sent", 1000, ""), ("status", 404, "404"), ("content", b"another file", "hash")],
)
def test_a_failed_download_can_be_repeated_and_a_good_one_is_found(
    attribute, value, reason, server, monkeypatch, tmp_path
):
    with monkeypatch.context() as broken:
        broken.setattr(server, attribute, value)
        assert reason in assert_fails(tmp_path / "data", server.source)
    for _ in range(2):
        assert_equal(cifar.load(server.source, tmp_path / "data"), server.dataset)
        assert server.gets == 2


@pytest.mark.parametrize("silent", [False, True])
def test_without_an_answer_there_is_no_long_wait(silent, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "SECONDS", 1.0)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if silent:
            listener.listen()
        register(monkeypatch, listener.getsockname()[1])
        assert_fails(tmp_path / "data")
