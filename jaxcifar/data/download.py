"""Downloads one file through TFDS's download manager: progress, checksum and cache."""

import dataclasses
import shutil
import threading
from pathlib import Path

from jaxcifar.errors import UserError

PROBE_SECONDS = 8.0  # TFDS itself would retry for minutes before it says that there is no network


@dataclasses.dataclass(frozen=True)
class Remote:
    """A file on a web server.

    Attributes:
      url: its address, http or https.
      size: its length, in bytes.
      sha256: its checksum.
    """

    url: str
    size: int
    sha256: str


def download(remote: Remote, data_dir: Path) -> Path:
    """Downloads a file into ``data_dir/downloads``, where it is found again the next time.

    Returns:
      The path of the whole file, verified.

    Raises:
      UserError: the server cannot be reached, breaks off, or sends something else; nothing
        half-downloaded is left behind.
    """
    reason = _unreachable(remote.url)
    if reason:
        raise _failed(remote, data_dir, reason)
    folder = data_dir / "downloads"
    others = set(folder.glob("*.tmp.*"))  # of a download that another process may be at
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.download.checksums import UrlInfo
        from tensorflow_datasets.core.utils import Size

        name = remote.url.rsplit("/", 1)[-1]
        info = UrlInfo(size=Size(remote.size), checksum=remote.sha256, filename=name)
        manager = tfds.download.DownloadManager(
            download_dir=folder, url_infos={remote.url: info}, force_checksums_validation=True
        )
        return Path(manager.download(remote.url))
    except OSError as error:  # requests' exceptions are OSErrors, too: a full disk is one apart
        if getattr(error, "errno", None) is not None and error.filename:
            raise
        raise _failed(remote, data_dir, f"the download broke off ({error})") from error
    except Exception as error:  # TFDS's own: a wrong checksum, an HTTP status
        raise _failed(remote, data_dir, str(error)) from error
    finally:
        for leftover in set(folder.glob("*.tmp.*")) - others:
            shutil.rmtree(leftover, ignore_errors=True)


def _unreachable(url: str) -> str | None:
    """Why a server does not answer, or None; within ``PROBE_SECONDS`` whatever DNS does."""
    import requests

    outcome = [f"no answer within {PROBE_SECONDS:.0f} s"]

    def probe() -> None:
        try:
            requests.head(url, timeout=PROBE_SECONDS)
            outcome[0] = ""
        except requests.RequestException as error:
            outcome[0] = type(error).__name__

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return outcome[0] or None


def _failed(remote: Remote, data_dir: Path, reason: str) -> UserError:
    name = remote.url.rsplit("/", 1)[-1]
    pickled = name.replace("binary", "python")
    return UserError(
        f"the data is not in {data_dir} and {remote.url} cannot be had: {reason}. Put {name} (or"
        f" {pickled}) into {data_dir}, or name the folder that holds it with --data-dir, or train"
        " offline on --dataset digits"
    )
