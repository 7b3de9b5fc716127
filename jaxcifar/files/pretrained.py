"""The trained weights of jaxcifar: those of a clone, or downloaded."""

import importlib.metadata
from pathlib import Path

from etils import epy

from jaxcifar.errors import UserError
from jaxcifar.files.run import weights_path

with epy.lazy_imports():
    import pooch

PRETRAINED = "pretrained"  # in place of a path
SHA256 = {  # by model
    "resnet50_layer4": "96f58bcc9f9f980cbd186eed416eb91c8f3ce5302e6467c9481f654cb45f3695",
    "vgg16": "daddb81e6e67d3abbb8d45c5b58886c58db592385797095b3a7d540ef12821aa",
}
IN_CLONE = Path(__file__).parents[2] / "weights"


def resolve(path: str | Path, model: str | None) -> Path:
    """Return where weights are: ``"pretrained"``, ``RUN:best`` or a path.

    Downloads pretrained weights that are not there, or are others. Raises ``UserError``.
    """
    if str(path) != PRETRAINED:
        return weights_path(path)
    if model not in SHA256:
        names = " or ".join(SHA256)
        raise UserError(f"there are pretrained weights for {names} only: choose with --model")
    name = f"{model}.safetensors"
    entries = importlib.metadata.metadata("jaxcifar").get_all("Project-URL") or []
    url = f"{dict(entry.split(', ') for entry in entries)['weights']}/{name}"
    folder = IN_CLONE if (IN_CLONE / name).exists() else pooch.os_cache("jaxcifar")
    try:
        download = pooch.HTTPDownloader(progressbar=True, timeout=8)
        return Path(pooch.retrieve(url, SHA256[model], name, folder, downloader=download))
    except Exception as error:  # of requests, the checksum, or the disk
        advice = f"put the file into {folder}, or pass its path"
        raise UserError(f"could not download {url} ({error}): {advice}") from error
