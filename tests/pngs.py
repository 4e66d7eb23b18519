"""PNG files made by hand, byte by byte: what no library writes."""

import struct
import zlib

import numpy as np

from common.data.png import SIGNATURE

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a colour type


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: list[bytes], depth: int, colour: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of `rows`, each the packed bytes of a line; `before` and `after` the pixels stand other chunks."""
    width = 8 * len(rows[0]) // (depth * CHANNELS[colour])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return SIGNATURE + header + before + pixels + after + chunk(b"IEND", b"")


def packed(values: np.ndarray, depth: int) -> list[bytes]:
    """Lines of values of a few bits each."""
    return [np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - depth :]).tobytes() for row in values]


def palette_png(indices: np.ndarray, colours: object, depth: int = 8, more: bytes = b"") -> bytes:
    """Indices with the colours of their palette."""
    return png(packed(indices, depth), depth, 3, chunk(b"PLTE", np.asarray(colours, np.uint8).tobytes()) + more)


def grey_png(values: np.ndarray, depth: int) -> bytes:
    """Grey of at most 8 bits."""
    return png(packed(values, depth), depth, 0)
