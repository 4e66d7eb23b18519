"""What an image file says of itself, read before a pixel is decoded: its kind, size, and how it wants to be shown."""

import io
import struct
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image

FORMATS = ("PNG", "JPEG")  # by content, whatever the suffix says; decoders that are not needed are never reached
MAX_PIXELS = 2**27  # 16384 x 8192, 400 MB decoded: a file of a few kB may claim any size
UPRIGHT = 1
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNK_START = 8  # bytes of a PNG chunk before its data: length, kind
CHUNK_FRAME = 12  # bytes of a PNG chunk beside its data: length, kind, checksum
DAMAGED = (SyntaxError, ValueError, KeyError, IndexError, struct.error, OSError, EOFError, OverflowError, TypeError)


@dataclass(frozen=True)
class ImageHeader:
    """Width and height in pixels, and the EXIF orientation (1: as stored)."""

    width: int
    height: int
    orientation: int


def read_header(data: bytes | memoryview, path: Path) -> ImageHeader:
    """The header of the image file `data`; `path` is named in errors.

    Raises:
        ValueError: neither PNG nor JPEG, damaged, or larger than MAX_PIXELS.
    """
    try:
        if data[: len(PNG_SIGNATURE)] == PNG_SIGNATURE and _claims_too_much(data):
            raise ValueError("a chunk claims more bytes than the file has")
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height, exif = *image.size, image.info.get("exif")
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {error}; the largest image read is of {MAX_PIXELS} pixels") from error
    except DAMAGED as error:
        wanted = " or ".join(FORMATS)
        raise ValueError(
            f"{path}: not an image that can be decoded; wanted {wanted}; is the file damaged, or of another kind?"
        ) from error
    if width * height > MAX_PIXELS:
        raise ValueError(f"{path}: claims {width}x{height} pixels, more than {MAX_PIXELS}; make it smaller")
    return ImageHeader(width, height, _orientation(exif))


def _claims_too_much(png: bytes | memoryview) -> bool:
    """Whether a chunk claims more bytes than the file has: OpenCV takes memory for up to 4 GB of them before it reads.

    A PNG is a row of chunks (ISO/IEC 15948, 5.3): length of the data (4 bytes), kind (4), data, checksum (4).
    """
    place = len(PNG_SIGNATURE)
    while place + CHUNK_START <= len(png):
        (length,) = struct.unpack_from(">I", png, place)
        end = place + CHUNK_FRAME + length
        if end > len(png):
            return True
        if bytes(png[place + 4 : place + CHUNK_START]) == b"IEND":
            return False
        place = end
    return False


def _orientation(exif: bytes | None) -> int:
    """The orientation in an EXIF block; what cannot be read turns no viewer's picture either."""
    if not exif:
        return UPRIGHT
    block = Image.Exif()
    try:
        block.load(exif)
        return int(block.get(ExifTags.Base.Orientation, UPRIGHT))
    except DAMAGED:
        return UPRIGHT


def require_upright(header: ImageHeader, path: Path) -> None:
    """Refuse an image that viewers show turned or mirrored: nobody knows whether its mask was drawn on what they show.

    Raises:
        ValueError: names the file and the cure.
    """
    if header.orientation != UPRIGHT:
        raise ValueError(
            f"{path}: EXIF orientation {header.orientation}, so viewers turn it, and nobody knows whether the mask "
            "was drawn on it turned; store it upright (mogrify -auto-orient) or drop the tag (exiftool -Orientation=)"
        )
