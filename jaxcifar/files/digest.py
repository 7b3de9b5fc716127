"""SHA-256 digests, in hexadecimal."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path


def digest(tree: Any) -> str:
    """Return the digest of the paths, dtypes, shapes and bytes of a tree's leaves."""
    total = hashlib.sha256()
    leaves = {keystr(p, simple=True, separator="/"): x for p, x in tree_leaves_with_path(tree)}
    for name, leaf in sorted(leaves.items()):  # so that a dataclass is as its dict
        array = np.asarray(leaf)
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def sha256(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
