"""CRC-32C (Castagnoli), which Google's buckets state for every object; Python's own `zlib.crc32` is another polynomial."""

from __future__ import annotations

import functools

import numpy as np

_POLYNOMIAL = 0x82F63B78
_LANES = 4096
"""Pieces of a block whose checksums run side by side in NumPy, and the bytes in each: a block is 4 MiB."""
_LENGTH = 1024


@functools.cache
def _table() -> np.ndarray:
    """Effect of one byte on an empty register, `(256,)` uint32."""
    register = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        register = (register >> 1) ^ np.where(register & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return register


@functools.cache
def _skip() -> np.ndarray:
    """Effect of `_LENGTH` zero bytes on each byte of a register, `(4, 256)` uint32 (the checksum is linear in it)."""
    table, registers = _table(), (np.arange(256, dtype=np.uint32) << (8 * np.arange(4, dtype=np.uint32))[:, None])
    for _ in range(_LENGTH):
        registers = (registers >> 8) ^ table[registers & 0xFF]
    return registers


def update(data: bytes | memoryview, crc: int = 0) -> int:
    """The CRC-32C of bytes whose earlier part has the checksum `crc`, followed by `data`."""
    table, block = _table(), np.frombuffer(data, np.uint8)
    register = crc ^ 0xFFFFFFFF
    while len(block) >= _LANES * _LENGTH:
        lanes, block = block[: _LANES * _LENGTH].reshape(_LANES, _LENGTH).T, block[_LANES * _LENGTH :]
        registers = np.zeros(_LANES, np.uint32)
        for byte in np.ascontiguousarray(lanes):
            registers = (registers >> 8) ^ table[(registers ^ byte) & 0xFF]
        skip = _skip().tolist()
        for lane in registers.tolist():
            register = (
                skip[0][register & 0xFF]
                ^ skip[1][register >> 8 & 0xFF]
                ^ skip[2][register >> 16 & 0xFF]
                ^ skip[3][register >> 24]
                ^ lane
            )
    steps = table.tolist()
    for byte in block.tolist():
        register = (register >> 8) ^ steps[(register ^ byte) & 0xFF]
    return register ^ 0xFFFFFFFF
