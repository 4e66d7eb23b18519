"""From an image file to its pixels: images as 8-bit RGB, masks without the loss of a value that tells classes apart."""

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from common.data.image_header import DAMAGED, UPRIGHT, ImageHeader, read_header, require_upright
from common.data.png import GREY, GREY_ALPHA, PALETTE, RGB_ALPHA, PngKind, has_whole_pixels
from common.system.files import require_ordinary

EVIDENT_BITS = 14  # sensors give 8, 10, 12 or 14: an image of 16 bits of data reaches beyond, unless it is very dark
REPEATED = 257  # 16-bit values whose upper byte repeats the lower are multiples of it: 8 bits, widened without a loss
LISTED_VALUES = 8  # that an error message spells out
DAMAGED_FILE = "not an image that can be decoded; is the file damaged?"
_BY_ORIENTATION: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF: what makes the stored picture upright
    2: lambda rgb: cv2.flip(rgb, 1),
    3: lambda rgb: cv2.rotate(rgb, cv2.ROTATE_180),
    4: lambda rgb: cv2.flip(rgb, 0),
    5: cv2.transpose,
    6: lambda rgb: cv2.rotate(rgb, cv2.ROTATE_90_CLOCKWISE),
    7: lambda rgb: cv2.flip(cv2.transpose(rgb), -1),
    8: lambda rgb: cv2.rotate(rgb, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def read_bytes(path: Path) -> np.ndarray:
    """The content of an ordinary file as uint8 (bytes,)."""
    require_ordinary(path)
    return np.fromfile(path, np.uint8)


def read_rgb(path: Path, bits: int | None = None, *, labelled: bool = False, scale: int = 1) -> np.ndarray:
    """Decode a PNG or JPEG file to uint8 RGB (H, W, 3).

    Grey, palette and CMYK are converted, transparency is dropped. What EXIF turns is turned upright; an image that is
    `labelled` is refused instead, because nobody knows on which view its mask was drawn.

    Args:
        bits: of data in an image that is stored with 16 (8 to 16); the upper 8 of them are taken. None: they have to be
            evident, by values of more than 14 bits, or by an upper byte that repeats the lower one.
        scale: 2 halves both sides, rounded up, while it decodes: saves time with JPEG only.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no ordinary file, not to be decoded, too large, of 16 bits that hold less or more than `bits`, or,
            being `labelled`, of an EXIF orientation.
    """
    data = read_bytes(path)  # not cv2.imread: it prints instead of raising
    header = read_header(data.data, path)
    if labelled:
        require_upright(header, path)
    # without the bit for colour, which is for BGR, this flag is the scale alone
    flags = cv2.IMREAD_COLOR_RGB | {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2}[scale]
    rgb = _decode(data, header, flags, path)
    if rgb.dtype == np.uint16:
        rgb = _eight_bits(rgb, bits, path)
    return rgb if header.orientation == UPRIGHT else _BY_ORIENTATION[header.orientation](rgb)


def _decode(data: np.ndarray, header: ImageHeader, flags: int, path: Path) -> np.ndarray:
    """The pixels as stored, of 8 or 16 bits as the file has them."""
    deep = cv2.IMREAD_ANYDEPTH if header.png and header.png.depth == 16 else 0
    try:
        pixels = cv2.imdecode(data, flags | deep | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise ValueError(f"{path}: {DAMAGED_FILE}")
    return pixels


def _eight_bits(values: np.ndarray, bits: int | None, path: Path) -> np.ndarray:
    """The upper 8 of the `bits` that 16-bit values hold, as uint8."""
    largest = int(values.max())
    if bits is None:
        found = largest.bit_length()
        if found <= EVIDENT_BITS and not _repeats(values):
            likely = next(each for each in (8, 10, 12, 14) if found <= each)
            raise ValueError(
                f"{path}: stored with 16 bits a value, but the largest is {largest}, of {likely} bits: as 16 bits "
                f"it is nearly black; say how many hold data with --image_bits {likely}, or 16 where it is that dark"
            )
        bits = 16
    elif largest >> bits:
        raise ValueError(f"{path}: its largest value is {largest}, more than --image_bits {bits} hold")
    return (values >> (bits - 8)).astype(np.uint8)


def _repeats(values: np.ndarray) -> bool:
    return not bool(((values >> 8) ^ (values & 255)).any())


def read_mask(path: Path) -> np.ndarray:
    """Decode a mask to uint8 RGB (H, W, 3), where that keeps all that its values tell apart.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no ordinary file, not to be decoded, too large, of an EXIF orientation; or values that 8-bit RGB
            cannot hold: 16 bits, indices to which the palette gives no colour of their own, alpha that is data.
    """
    data = read_bytes(path)
    header = read_header(data.data, path)
    require_upright(header, path)
    kind = header.png
    if kind and kind.colour == PALETTE:
        return _from_palette(data, kind, path)
    if kind and kind.colour in (GREY_ALPHA, RGB_ALPHA):
        pixels = _decode(data, header, cv2.IMREAD_UNCHANGED, path)  # BGRA
        _require_idle_alpha(pixels, path)
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB)
    else:
        pixels = _decode(data, header, cv2.IMREAD_COLOR_RGB, path)
    if pixels.dtype == np.uint16:
        if not _repeats(pixels):
            raise ValueError(
                f"{path}: a mask of 16 bits a value, with the values {_listed(pixels)}, which 8 bits cannot hold; "
                "store it as 8-bit RGB, or say what its values mean in a file of labels"
            )
        pixels = (pixels // 256).astype(np.uint8)
    return pixels


def read_values(path: Path) -> np.ndarray:
    """Decode a mask of ids to uint8 or uint16 (H, W): grey of any depth, the indices of a palette, or equal channels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no ordinary file, not to be decoded, too large, of an EXIF orientation, or of colours.
    """
    data = read_bytes(path)
    header = read_header(data.data, path)
    require_upright(header, path)
    kind = header.png
    if kind and kind.colour == PALETTE:
        return _indices(data, path)
    pixels = _decode(data, header, cv2.IMREAD_UNCHANGED, path)
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        _require_idle_alpha(pixels, path)
    values = pixels if pixels.ndim == 2 else pixels[..., 0]
    if pixels.ndim == 3 and not all(np.array_equal(values, pixels[..., channel]) for channel in range(1, 3)):
        raise ValueError(f"{path}: a mask of colours, where its labels give the classes of values")
    largest = 2**kind.depth - 1 if kind else 255
    return values if largest >= 255 else values // (255 // largest)  # fewer bits are spread over 0..255


def stored_greys(path: Path) -> str:
    """The depth and the values of a grey PNG, for errors; empty for any other image."""
    data = read_bytes(path)
    header = read_header(data.data, path)
    if header.png is None or header.png.colour not in (GREY, GREY_ALPHA):
        return ""
    grey = _decode(data, header, cv2.IMREAD_COLOR_RGB, path)[..., 0]
    largest = 2**header.png.depth - 1
    values = grey if largest >= 255 else grey // (255 // largest)  # fewer bits are spread over 0..255
    return f"stored as grey of {header.png.depth} bits with the values {_listed(values)}"


def _from_palette(data: np.ndarray, kind: PngKind, path: Path) -> np.ndarray:
    """The colours of a palette PNG."""
    indices = _indices(data, path)
    colours, used = kind.palette, np.flatnonzero(np.bincount(indices.ravel())).tolist()
    # an index of its own is the first with its colour; encoders fill a palette up with copies, often of black
    lost = [index for index in used if index >= len(colours) or colours.index(colours[index]) != index]
    if lost or (len(colours) > 1 and len(set(colours)) == 1):
        raise ValueError(
            f"{path}: a palette image of {kind.depth} bits with the indices {_listed(np.array(used))}, to which its "
            f"palette of {len(set(colours))} colours gives none of their own; store it as 8-bit RGB in the colours of "
            "common/data/labels.py"
        )
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = colours
    return table[indices]


def _indices(data: np.ndarray, path: Path) -> np.ndarray:
    """The indices of a palette PNG, uint8 (H, W), which OpenCV does not give."""
    try:
        with Image.open(io.BytesIO(data.data), formats=("PNG",)) as image:
            indices = np.asarray(image)
    except DAMAGED as error:
        raise ValueError(f"{path}: {DAMAGED_FILE}") from error
    if not has_whole_pixels(data.data):
        raise ValueError(f"{path}: {DAMAGED_FILE}")
    return indices


def _require_idle_alpha(pixels: np.ndarray, path: Path) -> None:
    """Refuse alpha that says more than the colours: other values than none and full, or several of one colour."""
    alpha, full = pixels[..., 3], np.iinfo(pixels.dtype).max
    if bool((alpha == full).all()):
        return
    hidden = alpha == 0
    if bool((hidden | (alpha == full)).all()):
        blue, green, red = (pixels[..., channel].astype(np.uint64) for channel in range(3))
        packed = red << 32 | green << 16 | blue
        if not np.isin(np.unique(packed[hidden]), np.unique(packed[~hidden])).any():
            return
    depth = 8 * pixels.itemsize
    raise ValueError(
        f"{path}: a mask with an alpha channel of {depth} bits that holds data, the values {_listed(alpha)}; it is "
        "not read: store the mask as 8-bit RGB in the palette's colours"
    )


def _listed(values: np.ndarray) -> str:
    """The distinct values, the first of them."""
    found = np.unique(values).tolist()
    more = len(found) - LISTED_VALUES
    return ", ".join(map(str, found[:LISTED_VALUES])) + (f" and {more} more" if more > 0 else "")
