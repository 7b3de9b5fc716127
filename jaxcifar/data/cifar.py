"""CIFAR-10 and -100: prepared by TFDS, as official files, or downloaded."""

from importlib.util import find_spec
from pathlib import Path

from etils import epy

from jaxcifar.data import archives, prepared
from jaxcifar.data.dataset import Dataset
from jaxcifar.errors import UserError, regular_file

with epy.lazy_imports():
    import pooch
    import tensorflow_datasets as tfds

SECONDS = 8.0  # to wait for a server
_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
CLASS_NAMES = tuple(_CLASSES.split())


def load(source: archives.Source, data_dir: Path, *, test_only: bool = False) -> Dataset:
    """Load what TFDS prepared as array_record, an archive or folder, a tfrecord, or a download."""
    infos = sorted(data_dir.glob(f"{source.name}/*/dataset_info.json"), reverse=True)
    texts = {info.parent: regular_file(info).read_text(errors="replace") for info in infos}
    fast = [folder for folder, text in texts.items() if '"array_record"' in text]
    slow = [folder for folder in texts if folder not in fast]
    paths = [*(fast if find_spec("array_record") else []), *archives.find(data_dir, source), *slow]
    path = paths[0] if paths else download(source.name, data_dir)
    try:
        if path in texts:
            dataset = prepared.read(path, test_only=test_only)
        else:
            dataset = archives.read(path, source, test_only=test_only)
        for split in dataset[:2]:
            if not set(split.labels.tolist()) <= set(range(len(dataset.class_names))):
                raise ValueError("a label has no class")
    except Exception as error:  # whatever pickle, array_record, protobuf or Pillow raise
        known = "official files, and TFDS's array_record and tfrecord"
        problem = f"{path} is damaged or incomplete ({error})"
        raise UserError(f"{problem}: replace or delete it; {known} are read") from error
    return dataset


def download(name: str, data_dir: Path) -> Path:
    """Download the archive that TFDS knows for a data set into ``data_dir/downloads``."""
    ((url, info),) = tfds.builder_cls(name).url_infos.items()
    http = pooch.HTTPDownloader(progressbar=True, chunk_size=2**16, timeout=SECONDS)
    folder = data_dir / "downloads"
    try:
        return Path(pooch.retrieve(url, info.checksum, info.filename, folder, downloader=http))
    except Exception as error:  # of requests, the checksum, or the disk
        names = f"{info.filename} (or {info.filename.replace('binary', 'python')})"
        advice = f"Put {names} into {data_dir}, or pass the folder that holds it with --data-dir"
        advice += ", or train offline with --dataset digits"
        raise UserError(f"could not download {url}: {error}. {advice}") from error
