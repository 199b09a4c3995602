"""MD5 of several streams side by side: one is a chain of dependent steps, eight of them keep a processor busy."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from .. import _native

MAX_STREAMS: int = _native.MD5_LANES
_BLOCK = 64
_START = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)


class Md5Stream:
    """The MD5 of bytes that come in whole blocks of 64 (``update_all``), and at the end a rest (``finish``)."""

    def __init__(self) -> None:
        self.state = np.array(_START, np.uint32)
        self.nbytes = 0

    def finish(self, rest: np.ndarray) -> str:
        """The digest as lower-case hex, after ``rest``: uint8 (n,), the last bytes of the stream."""
        size = self.nbytes + len(rest)
        padding = b"\x80" + bytes(-(len(rest) + 9) % _BLOCK) + struct.pack("<Q", 8 * size)
        update_all([self], [np.concatenate([rest, np.frombuffer(padding, np.uint8)])])
        return self.state.astype("<u4").tobytes().hex()


def update_all(streams: Sequence[Md5Stream], data: Sequence[np.ndarray]) -> None:
    """Take data[i], uint8, into streams[i], of which there are 1 to MAX_STREAMS: equally many whole blocks of 64."""
    states = np.concatenate([stream.state for stream in streams])
    _native.md5_update(states.view(np.uint8), data)
    for stream, state, piece in zip(streams, states.reshape(-1, 4), data, strict=True):
        stream.state, stream.nbytes = state, stream.nbytes + len(piece)
