"""The chunks of a PNG file (ISO/IEC 15948, 5.3), read before a decoder takes memory for what they claim."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNK_START = 8  # bytes before the data: length, kind
CHUNK_FRAME = 12  # bytes beside the data: length, kind, checksum
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types
# chunks that may say how the picture wants to be turned: EXIF, the same as text, and XMP
TURNING = (b"eXIf", b"tEXtRaw profile type", b"zTXtRaw profile type", b"iTXtRaw profile type", b"iTXtXML:com.adobe.xmp")


@dataclass(frozen=True)
class PngKind:
    """How a PNG stores its pixels."""

    depth: int  # bits of a value, or of an index
    colour: int  # GREY, RGB, PALETTE, GREY_ALPHA or RGB_ALPHA
    palette: tuple[tuple[int, int, int], ...]  # RGB of each index
    pictures: int  # more than one: an animation
    turning: bool  # some chunk may say how the picture wants to be turned


def read_kind(png: bytes | memoryview) -> PngKind:
    """How the file `png` stores its pixels.

    Raises:
        ValueError, KeyError, IndexError, struct.error: damaged.
    """
    first: dict[bytes, memoryview] = {}  # of each kind, in the order of the file
    turning = False
    for kind, data, _ in chunks(png):
        first.setdefault(kind, data)
        turning |= (kind + data[:32].tobytes()).startswith(TURNING)
    entries = first.get(b"PLTE", memoryview(b"")).tobytes()
    palette = tuple(zip(entries[0::3], entries[1::3], entries[2::3], strict=True))
    return PngKind(first[b"IHDR"][8], first[b"IHDR"][9], palette, _pictures(first), turning)


def _pictures(first: dict[bytes, memoryview]) -> int:
    """How many pictures are in the file: an animation (APNG) may keep a plain one beside its frames."""
    if b"acTL" not in first:
        return 1
    order = list(first)
    own_frame = b"fcTL" in first and order.index(b"fcTL") < order.index(b"IDAT")
    return struct.unpack_from(">I", first[b"acTL"])[0] + (not own_frame)


def has_whole_pixels(png: bytes | memoryview) -> bool:
    """Whether the checksums of the chunks that hold the pixels are right; Pillow does not look at them."""
    return all(
        zlib.crc32(data, zlib.crc32(kind)) == checksum for kind, data, checksum in chunks(png) if kind == b"IDAT"
    )


def chunks(png: bytes | memoryview) -> Iterator[tuple[bytes, memoryview, int]]:
    """Kind, data and checksum of each chunk, up to the end that the file states.

    Raises:
        ValueError: a chunk claims more bytes than the file has. OpenCV takes memory for 4 GB of them before it reads.
    """
    content, place = memoryview(png), len(SIGNATURE)
    while place + CHUNK_START <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        kind, end = bytes(content[place + 4 : place + CHUNK_START]), place + CHUNK_FRAME + length
        if end > len(content):
            raise ValueError(f"a chunk claims {length} bytes, more than the file has")
        yield kind, content[place + CHUNK_START : end - 4], int.from_bytes(content[end - 4 : end], "big")
        if kind == b"IEND":
            return
        place = end
