"""The records in TFRecord files, which is TFDS's default format, without TensorFlow."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

_POLYNOMIAL = np.uint32(0x82F63B78)  # of CRC-32C, reversed


def read(paths: Sequence[Path], count: int) -> list[bytes]:
    """Return the records of all files; ``ValueError`` if one is damaged or not all are there."""
    records, sums = list[bytes](), list[int]()
    for path in paths:
        content, start = path.read_bytes(), 0
        while start < len(content):  # length, its checksum, the record, its checksum
            begin = start + 12
            end = begin + int.from_bytes(content[start : start + 8], "little")
            records.append(content[begin:end])
            sums.append(int.from_bytes(content[end : end + 4], "little"))
            start = end + 4
    if len(records) != count or (_checksums(records) != np.array(sums, np.uint32)).any():
        raise ValueError(f"not a whole tfrecord file of {count} records")
    return records


def _checksums(records: Sequence[bytes]) -> np.ndarray:
    """Return the masked CRC-32C of each record, all at once and two bytes at a time."""
    table: np.ndarray = np.arange(2**16, dtype=np.uint32)
    for _ in range(16):
        table = (table >> 1) ^ (table & 1) * _POLYNOMIAL
    width = max(map(len, records)) + 3 & ~1
    # A sum that starts with 0 ignores zeros in front; inverted bytes make up for its start of ones.
    starts = [bytes(255 - byte for byte in record[:4]) for record in records]
    padded = ((a + b[4:]).rjust(width, b"\0") for a, b in zip(starts, records, strict=True))
    columns = np.frombuffer(b"".join(padded), "<u2").reshape(len(records), -1).T.copy()
    crc = np.zeros(len(records), np.uint32)
    for column in columns:
        crc = table[(crc ^ column) & 0xFFFF] ^ (crc >> 16)
    crc = ~crc
    return (crc >> 15 | crc << 17) + np.uint32(0xA282EAD8)  # TFRecord's mask
