"""What an image file says of itself, read before a pixel is decoded: its kind, size, and how it wants to be shown."""

import io
import struct
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image

from common.data.png import SIGNATURE, PngKind, read_kind
from common.system.files import stand_in

FORMATS = ("PNG", "JPEG")  # by content, whatever the suffix says; decoders that are not needed are never reached
MAX_PIXELS = 2**27  # 16384 x 8192, 400 MB decoded: a file of a few kB may claim any size
UPRIGHT = 1
TURNED = range(2, 9)  # EXIF orientations that viewers act upon; cameras write 0 where they do not know
Image.MAX_IMAGE_PIXELS = None  # Pillow would warn of fewer
DAMAGED = (SyntaxError, ValueError, KeyError, IndexError, struct.error, OSError, EOFError, OverflowError, TypeError)


@dataclass(frozen=True)
class ImageHeader:
    """Width and height in pixels as stored, the EXIF orientation (1: upright), and the kind of a PNG."""

    width: int
    height: int
    orientation: int
    png: PngKind | None  # None: a JPEG


def read_header(data: bytes | memoryview, path: Path) -> ImageHeader:
    """The header of the image file `data`; `path` is named in errors.

    Raises:
        ValueError: neither PNG nor JPEG, damaged, animated, or larger than MAX_PIXELS.
    """
    try:
        png = read_kind(data) if data[: len(SIGNATURE)] == SIGNATURE else None
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            (width, height), orientation = image.size, UPRIGHT
            if width * height <= MAX_PIXELS and (png is None or png.turning):  # else Pillow would decode it to look
                orientation = _orientation(image)
    except DAMAGED as error:
        wanted = " or ".join(FORMATS)
        found = stand_in(bytes(data[:64])) or "is the file damaged, or of another kind?"
        raise ValueError(f"{path}: not an image that can be decoded; wanted {wanted}; {found}") from error
    if width * height > MAX_PIXELS:
        raise ValueError(f"{path}: claims {width}x{height} pixels, more than {MAX_PIXELS}; make it smaller")
    if png and png.pictures > 1:
        raise ValueError(f"{path}: an animation of {png.pictures} pictures; store the one that is meant as a plain PNG")
    return ImageHeader(width, height, orientation, png)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, or that of XMP; what cannot be read, or is none, turns no viewer's picture either."""
    try:
        found = int(image.getexif().get(ExifTags.Base.Orientation, UPRIGHT))
    except DAMAGED:
        return UPRIGHT
    return found if found in TURNED else UPRIGHT


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
