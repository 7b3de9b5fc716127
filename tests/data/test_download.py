"""The download, against a server on loopback that works, lies, breaks off or is silent."""

import hashlib
import http.server
import socket
import threading
import time

import pytest

from jaxcifar.data import archives, cifar, download
from jaxcifar.errors import UserError
from tests.data import cifar_files

# The download library leaves its idle connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

BINARY = archives.CIFAR10.binary_archive


class Server(http.server.ThreadingHTTPServer):
    """Serves one archive; ``mode`` says how: whole, broken or missing."""

    daemon_threads = True
    content = b""
    mode = "whole"
    gets = 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(404 if self.server.mode == "missing" else 200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()

    def do_GET(self):
        self.server.gets += 1
        self.do_HEAD()
        whole = len(self.server.content)
        self.wfile.write(
            self.server.content[: whole // 2 if self.server.mode == "broken" else whole]
        )
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def dataset(rng):
    return cifar_files.make_dataset(rng)


@pytest.fixture
def published(server, dataset, tmp_path):
    published = cifar_files.write(tmp_path / "official", dataset)
    server.content = (tmp_path / "official" / BINARY).read_bytes()
    return published


def remote(port, content, sha256=None):
    url = f"http://127.0.0.1:{port}/{BINARY}"
    sha256 = sha256 or hashlib.sha256(content).hexdigest()
    return download.Remote(url, len(content), sha256)


def assert_fails(data_dir, source, published=archives.CIFAR10):
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        cifar_files.load(data_dir, published, remote=source)
    assert time.monotonic() - start < 10
    message = str(error.value)
    assert "\n" not in message
    ways_out = (f"Put {BINARY}", str(data_dir), "--data-dir", "--dataset digits")
    assert all(way in message for way in ways_out)
    assert not list(data_dir.glob("downloads/*.tmp.*"))
    assert not list(data_dir.glob("**/*.tar.gz"))
    return message


def test_whole_and_then_from_the_cache(server, published, dataset, tmp_path):
    source = remote(server.server_port, server.content)
    data_dir = tmp_path / "data"
    got = cifar_files.load(data_dir, published, remote=source)
    cifar_files.assert_equal(got, dataset)
    assert server.gets == 1
    server.shutdown()
    server.server_close()
    got = cifar_files.load(data_dir, published, remote=source)
    cifar_files.assert_equal(got, dataset)


def test_broken_off_and_then_whole(server, published, dataset, tmp_path):
    source = remote(server.server_port, server.content)
    server.mode = "broken"
    assert_fails(tmp_path / "data", source, published)
    server.mode = "whole"
    got = cifar_files.load(tmp_path / "data", published, remote=source)
    cifar_files.assert_equal(got, dataset)


def test_a_wrong_checksum(server, published, tmp_path):
    source = remote(server.server_port, server.content, sha256="0" * 64)
    assert "checksum" in assert_fails(tmp_path / "data", source, published)


def test_a_missing_file(server, published, tmp_path):
    server.mode = "missing"
    source = remote(server.server_port, server.content)
    assert "404" in assert_fails(tmp_path / "data", source, published)


def test_no_network(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    assert_fails(tmp_path / "data", remote(port, b""))


def test_a_silent_server(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PROBE_SECONDS", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert_fails(tmp_path / "data", remote(silent.getsockname()[1], b""))


@pytest.mark.parametrize("source", [cifar.CIFAR10, cifar.CIFAR100])
def test_the_official_address_is_the_one_that_tfds_knows(source):
    import tensorflow_datasets as tfds

    ((url, info),) = tfds.builder(source.name).url_infos.items()
    assert source.remote == download.Remote(url, info.size, info.checksum)
    assert source.remote.url.endswith(source.published.binary_archive)
