"""Which images a slice such as `train[:800]` holds: TensorFlow Datasets' order of a set, computed from names alone.

TFDS writes the examples of a split sorted by a hash of split and key, so that a slice of it is always the same images. Source of the
rule: tensorflow/datasets, core/hashing.py and core/shuffle.py. What it gives is checked in the tests against the members of six sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def order(split: str, keys: Sequence[str] | Sequence[int]) -> np.ndarray:
    """int64 (n,): the places in `keys` in the order of TFDS's `split` ("train", "validation", "test").

    The hash is the MD5 of the split's name followed by the key (a number as decimal digits, a path with forward slashes), taken as an
    unsigned number of 128 bits; the smallest comes first.
    """
    salted = hashlib.md5(split.encode(), usedforsecurity=False)

    def digest(key: str | int) -> bytes:
        hasher = salted.copy()
        hasher.update(str(key).replace("\\", "/").encode("utf-8", "surrogateescape"))
        return hasher.digest()

    digests = np.array([digest(key) for key in keys], dtype="S16" if len(keys) else object)
    if not len(keys):
        return np.zeros(0, np.int64)
    # NumPy's byte strings drop zeros at the end, which changes no order among strings of one length: zero is the least of bytes.
    return np.argsort(digests, kind="stable").astype(np.int64)
