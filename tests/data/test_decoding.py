"""Decoding: every kind of PNG and JPEG, turned upright where no mask can disagree, and no value lost without a word."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from common.data.decoding import read_mask, read_rgb
from common.data.image_header import read_header
from common.data.loading import load_ids
from common.data.pairs import Sample
from common.data.png import chunks
from models.scene_seg import CLASSES, PALETTE
from tests.family import LABELS
from tests.pngs import chunk, grey_png, palette_png, png

ORIENTATION = 0x0112
COLOURS = np.array([colour for _, colour, _ in PALETTE], np.uint8)
IDS = np.random.default_rng(0).integers(0, len(PALETTE), (12, 24), dtype=np.uint8)  # of the palette's entries
MASK = COLOURS[IDS]


def random_image(seed, height, width, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation):
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_every_kind_of_png_is_read_as_rgb(tmp_path, mode):
    image = Image.fromarray(random_image(0, 12, 20)).convert(mode)
    image.save(tmp_path / "image.png")
    assert (read_rgb(tmp_path / "image.png") == np.asarray(image.convert("RGB"))).all()


def with_text(kind, data):
    """A PNG that says its orientation (6) in a chunk of another kind than EXIF's."""
    return png([row.tobytes() for row in random_image(0, 12, 20)], 8, 2, chunk(kind, data))


RAW_PROFILE = b"\nexif\n%8d\n%s\n" % (len(exif(6).tobytes()), exif(6).tobytes().hex().encode())
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
TURNED = {
    "JPEG": lambda image, orientation: saved(image, "JPEG", exif=exif(orientation), quality=100, subsampling=0),
    "PNG": lambda image, orientation: saved(image, exif=exif(orientation)),
    "PNG, EXIF after the pixels": lambda image, orientation: png(
        [row.tobytes() for row in np.asarray(image)], 8, 2, after=chunk(b"eXIf", exif(orientation).tobytes()[6:])
    ),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", TURNED)
def test_what_exif_turns_is_turned_upright_and_refused_where_it_has_a_mask(tmp_path, kind, orientation):
    smooth = Image.fromarray(cv2.resize(random_image(0, 3, 5), (40, 24), interpolation=cv2.INTER_LINEAR))
    path = tmp_path / "image.png"
    path.write_bytes(TURNED[kind](smooth, orientation))
    expected = Image.open(path)
    expected.load()  # with what stands after the pixels
    expected = np.asarray(ImageOps.exif_transpose(expected)).astype(int)
    assert np.abs(read_rgb(path).astype(int) - expected).max() <= (3 if kind == "JPEG" else 0)
    if orientation > 1:
        for read in (read_mask, lambda path: read_rgb(path, labelled=True)):
            with pytest.raises(ValueError, match=rf"image\.png: EXIF orientation {orientation}.* drop the tag"):
                read(path)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"tEXt", b"Raw profile type exif\0" + RAW_PROFILE),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_PROFILE)),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    ],
    ids=["text", "compressed text", "XMP"],
)
def test_an_orientation_in_other_chunks_counts_too(tmp_path, kind, data):
    (tmp_path / "a.png").write_bytes(with_text(kind, data))
    assert (read_rgb(tmp_path / "a.png") == np.rot90(random_image(0, 12, 20), -1)).all()


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_turns_nothing(tmp_path, orientation):
    (tmp_path / "a.png").write_bytes(saved(Image.fromarray(MASK), exif=exif(orientation)))
    assert (read_rgb(tmp_path / "a.png", labelled=True) == MASK).all()
    assert (read_mask(tmp_path / "a.png") == MASK).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, suffix, share):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(random_image(0, 120, 160)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=rf"image\{suffix}: not an image that can be decoded"):
        read_rgb(path)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        read_rgb(tmp_path / "absent.png")


def test_a_file_that_stands_in_for_the_image_is_told(tmp_path):
    (tmp_path / "a.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(ValueError, match=r"a\.png: not an image.*Git LFS pointer, .*; git lfs pull"):
        read_rgb(tmp_path / "a.png")


# ---- 16 bits a value -------------------------------------------------------------------------------------------------


def deep(path, values):
    order = {2: ..., 3: (..., [2, 1, 0]), 4: (..., [2, 1, 0, 3])}[values.shape[2] if values.ndim == 3 else 2]
    assert cv2.imwrite(str(path), np.ascontiguousarray(values[order]))
    return path


@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_image_of_fewer_bits_in_16_is_refused_without_their_number_and_right_with_it(tmp_path, bits, channels):
    rgb = random_image(0, 12, 20, channels).squeeze()
    rgb[0, 0] = 255
    below = np.random.default_rng(1).integers(0, 2 ** (bits - 8), rgb.shape)  # what the upper 8 bits leave out
    path = deep(tmp_path / "a.png", (rgb.astype(np.uint16) << (bits - 8)) + below.astype(np.uint16))
    with pytest.raises(
        ValueError, match=r"a\.png: stored with 16 bits a value, but the largest is \d+, .*--image_bits"
    ):
        read_rgb(path)
    if bits == 12:
        with pytest.raises(ValueError, match="of 12 bits: .* --image_bits 12, or 16 where"):
            read_rgb(path)
    expected = rgb[..., None].repeat(3, axis=2) if channels == 1 else rgb[..., :3]
    assert (read_rgb(path, bits) == expected).all()
    assert (read_rgb(path, 16) == expected >> (16 - bits)).all()
    if bits > 8:
        with pytest.raises(ValueError, match=rf"largest value is \d+, more than --image_bits {bits - 1} hold"):
            read_rgb(path, bits - 1)


@pytest.mark.parametrize("values", [[0, 0], [0, 255 * 257], [10 * 257, 3 * 257], [1, 65535], [7, 2**14]])
def test_16_bits_that_show_what_they_are_need_no_flag(tmp_path, values):
    """Black, 8 bits widened by repeating them, however dark, or values that reach beyond 14 bits."""
    grey = np.array([values] * 3, np.uint16)
    assert (read_rgb(deep(tmp_path / "a.png", grey))[..., 0] == grey >> 8).all()


def test_the_number_of_bits_is_for_images_of_16_alone(tmp_path):
    rgb = random_image(0, 12, 20)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    assert (read_rgb(tmp_path / "a.png", 12) == rgb).all()


# ---- masks -----------------------------------------------------------------------------------------------------------


BLACK = [(0, 0, 0)]
ALL = [tuple(colour) for colour in COLOURS.tolist()]
SIX = IDS % 6  # that a palette of the first six colours gives
READ = {
    "8-bit RGB": saved(Image.fromarray(MASK)),
    "RGBA, opaque": saved(Image.fromarray(np.dstack([MASK, np.full_like(IDS, 255)]))),
    "RGBA, a class transparent": saved(Image.fromarray(np.dstack([MASK, np.where(IDS == 3, 0, 255).astype(np.uint8)]))),
    "RGBA, all transparent": saved(Image.fromarray(np.dstack([MASK, np.zeros_like(IDS)]))),
    "16 bits, widened": cv2.imencode(".png", MASK[..., ::-1].astype(np.uint16) * 257)[1].tobytes(),
    "16 bits with alpha, widened": cv2.imencode(
        ".png", np.dstack([MASK[..., ::-1], np.full_like(IDS, 255)]).astype(np.uint16) * 257
    )[1].tobytes(),
    "palette of 8 bits": palette_png(IDS, ALL),
    "palette of 4 bits": palette_png(IDS, ALL, 4),
    "palette filled up with black": palette_png(IDS, ALL + 247 * BLACK),
    "palette, interlaced": saved(Image.fromarray(MASK).quantize(len(ALL)), interlace=1),
    "palette with a transparent index": palette_png(IDS, ALL, more=chunk(b"tRNS", bytes([0, 128, 255]))),
    "gamma, a background and a colour that is transparent": png(
        [row.tobytes() for row in MASK], 8, 2,
        chunk(b"gAMA", struct.pack(">I", 100000)) + chunk(b"bKGD", bytes(6)) + chunk(b"tRNS", bytes(6)),
    ),
    "an ICC profile": saved(Image.fromarray(MASK), icc_profile=b"none" * 99),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_masks_whose_colours_are_all_that_they_hold_are_read(case, tmp_path):
    (tmp_path / "a.png").write_bytes(READ[case])
    assert (read_mask(tmp_path / "a.png") == MASK).all()
    sample = Sample("Own", tmp_path / "a.png", tmp_path / "a.png", LABELS)
    assert (load_ids(sample, IDS.shape) == np.array([CLASSES.index(name) for *_, name in PALETTE])[IDS]).all()


def wide(values):
    """16-bit values as they are, not widened."""
    return cv2.imencode(".png", np.ascontiguousarray(values.astype(np.uint16)))[1].tobytes()


def alpha_of(alpha, rgb=MASK):
    return saved(Image.fromarray(np.dstack([rgb, alpha])))


DARK = np.zeros_like(MASK)
SIXTEEN = r"a mask of 16 bits a value, with the values "
INDICES = r"indices 0, 1, 2, 3, 4, 5, 6, 7 and 1 more, to which its palette of "
REFUSED = {
    "16 bits, ids": (wide(IDS), SIXTEEN + "0, 1, 2, 3, 4, 5, 6, 7 and 1 more"),
    "16 bits, one id": (wide(np.ones_like(IDS)), SIXTEEN + "1, which"),
    "16 bits, ids above the lower byte": (wide(IDS.astype(int) * 256), SIXTEEN + "0, 256, 512"),
    "16 bits, colours": (wide(MASK[..., ::-1]), SIXTEEN + "0, 28, 61"),
    "16 bits, colours in the upper byte": (wide(MASK[..., ::-1].astype(int) * 256), SIXTEEN),
    "16 bits, ids in alpha": (wide(np.dstack([DARK, IDS])), "alpha channel of 16 bits .* values 0, 1, 2"),
    "16 bits, grey with ids in alpha": (
        png([np.dstack([row * 0, row]).astype(">u2").tobytes() for row in IDS], 16, 4), "alpha channel of 16 bits",
    ),
    "8 bits, ids in alpha": (alpha_of(IDS, DARK), "alpha channel of 8 bits .* values 0, 1, 2"),
    "8 bits, one id in alpha": (alpha_of(np.ones_like(IDS), DARK), "alpha channel of 8 bits .* the values 1;"),
    "grey with ids in alpha": (saved(Image.merge("LA", [Image.fromarray(a) for a in (IDS * 0, IDS)])), "alpha channel"),
    "two classes by alpha alone": (alpha_of(np.where(IDS == 3, 0, 255).astype(np.uint8), DARK), "values 0, 255;"),
    "half transparent": (alpha_of(np.full_like(IDS, 128)), "alpha channel of 8 bits .* values 128;"),
    "black palette": (palette_png(IDS, 256 * BLACK), INDICES + "1 colours"),
    "black palette, one index": (palette_png(IDS * 0, 256 * BLACK), "indices 0, to which its palette of 1 colours"),
    "short palette": (palette_png(IDS, ALL[:6]), INDICES + "6 colours"),
    "no colour for id 255": (palette_png(np.where(IDS == 4, 255, IDS), ALL + 247 * BLACK), "palette image of 8 bits"),
    "two indices of one colour": (palette_png(IDS % 4, [ALL[8], *ALL[8:], *ALL], 4), "of 4 bits with the indices 0, 1"),
    "grey of 1 bit": (grey_png(IDS % 2**1, 1), "stored as grey of 1 bits with the values 0, 1$"),
    "grey of 2 bits": (grey_png(IDS % 2**2, 2), "stored as grey of 2 bits with the values 0, 1, 2, 3$"),
    "grey of 4 bits": (grey_png(IDS % 2**4, 4), "stored as grey of 4 bits with the values 0, 1, .*and 1 more$"),
    "grey of 8 bits": (saved(Image.fromarray(IDS)), "stored as grey of 8 bits with the values 0, 1, .*and 1 more$"),
    "16 bits, widened ids": (wide(IDS.astype(int) * 257), "not among .* grey of 16 bits with the values 0, 257"),
    "ids over the channels": (saved(Image.fromarray(np.dstack([IDS, IDS * 0, IDS * 0]))), r"\(\d, 0, 0\): "),
    "an animation": (
        saved(Image.fromarray(MASK), save_all=True, append_images=[Image.fromarray(MASK[::-1])]), "animation of 2",
    ),
    "an animation of one frame beside the picture": (
        saved(Image.fromarray(MASK), save_all=True, append_images=[Image.fromarray(MASK[::-1])], default_image=True),
        "animation of 2",
    ),
    "JPEG of one colour that is none": (saved(Image.fromarray(DARK + 9), "JPEG"), "colours"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_masks_that_hold_more_than_colours_are_refused_with_what_was_found(case, tmp_path):
    content, message = REFUSED[case]
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_ids(Sample("Own", tmp_path / "a.png", tmp_path / "a.png", LABELS), IDS.shape)
    assert str(error.value).startswith(f"{tmp_path / 'a.png'}: ")


def test_a_changed_bit_in_a_palette_mask_is_seen(tmp_path):
    """Pillow, which gives the indices, looks at no checksum of the pixels."""
    whole = palette_png(IDS, ALL)
    start, end = whole.index(b"IDAT") + 4, whole.index(b"IEND") - 8
    for place in range(start, end):
        changed = bytearray(whole)
        changed[place] ^= 1
        (tmp_path / "a.png").write_bytes(changed)
        with pytest.raises(ValueError, match=r"a\.png: not an image"):
            read_mask(tmp_path / "a.png")


def test_the_chunks_of_a_file_are_read_to_its_stated_end(tmp_path):
    content = png([b"abc"], 8, 2) + b"more"
    assert [kind for kind, *_ in chunks(content)] == [b"IHDR", b"IDAT", b"IEND"]
    assert read_header(content, tmp_path).png.depth == 8
