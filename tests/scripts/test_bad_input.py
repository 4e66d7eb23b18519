"""Images, masks and folders that nobody has looked at: each is read rightly, or refused with one line that names it."""

import errno
import os
import re
import resource
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from common.data.cache import load_cached
from common.data.datasets import spread
from common.data.decoding import read_rgb
from common.data.drawing import save_prediction
from common.data.image_header import MAX_PIXELS, read_header
from common.data.loading import SampleDataset, load_sample
from common.data.pairs import Sample
from common.data.shots import find_images
from examples.make_scenes import write_dataset
from tests import tiny_run
from tests.command_lines import call, refusal
from tests.family import CLASSES, LABELS, format_of, found

ROOT = Path(__file__).resolve().parents[2]
RGB = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
ROAD = np.full((64, 96, 3), (0, 255, 220), np.uint8)
ORIENTATION = 0x0112


def image(rgb):
    return Image.fromarray(rgb)


def turned(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def shortened(path, rgb, share, **options):
    image(rgb).save(path, **options)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def claiming(path, width, height):
    """A PNG of some bytes whose header says that it is as large."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


def grey(rgb):
    return np.asarray(image(rgb).convert("L").convert("RGB"))


# name: (suffix, writer of a path, the pixels that have to be read)
READ = {
    "greyscale": (".png", lambda path: image(RGB).convert("L").save(path), grey(RGB)),
    "grey with alpha": (".png", lambda path: image(RGB).convert("LA").save(path), grey(RGB)),
    "black and white": (".png", lambda path: image(RGB).convert("1").save(path), image(RGB).convert("1")),
    "palette": (".png", lambda path: image(ROAD).quantize(4).save(path), ROAD),
    "transparent": (".png", lambda path: image(np.dstack([RGB, np.zeros((64, 96), np.uint8)])).save(path), RGB),
    "16 bits": (".png", lambda path: cv2.imwrite(str(path), RGB[..., ::-1].astype(np.uint16) * 257), RGB),
    "16 bits, grey": (
        ".png",
        lambda path: cv2.imwrite(str(path), grey(RGB)[..., 0].astype(np.uint16) * 257),
        grey(RGB),
    ),
    "PNG named .jpg": (".jpg", lambda path: image(RGB).save(path, "PNG"), RGB),
    "CMYK": (".jpg", lambda path: image(ROAD).convert("CMYK").save(path, quality=100), ROAD),
    "progressive JPEG": (".jpg", lambda path: image(ROAD).save(path, quality=100, progressive=True), ROAD),
    "EXIF, upright": (".jpg", lambda path: image(ROAD).save(path, quality=100, exif=turned(1)), ROAD),
    "EXIF, damaged": (".jpg", lambda path: image(ROAD).save(path, quality=100, exif=b"Exif\0\0II*\0\xff"), ROAD),
}


@pytest.mark.parametrize("case", READ)
def test_kinds_of_images_that_are_read(case, tmp_path):
    suffix, write, expected = READ[case]
    path = tmp_path / f"image{suffix}"
    write(path)
    difference = np.abs(read_rgb(path, labelled=True).astype(int) - np.asarray(image_as_rgb(expected)))
    assert difference.max() <= (3 if suffix == ".jpg" else 0)


def image_as_rgb(expected):
    return expected.convert("RGB") if isinstance(expected, Image.Image) else expected


# name: (writer of a path, what the line says beside the path)
REFUSED = {
    "zero bytes": (lambda path: path.write_bytes(b""), "cannot|not an image"),
    "text": (lambda path: path.write_text("no image"), "not an image .* of another kind"),
    "truncated PNG": (lambda path: shortened(path, RGB, 0.6), "not an image"),
    "truncated JPEG": (lambda path: shortened(path, RGB, 0.6, format="JPEG"), "not an image"),
    "truncated header": (lambda path: shortened(path, RGB, 0.001), "not an image"),
    "GIF": (lambda path: image(RGB).save(path, "GIF"), "wanted PNG or JPEG"),
    "BMP": (lambda path: image(RGB).save(path, "BMP"), "wanted PNG or JPEG"),
    "TIFF": (lambda path: image(RGB).save(path, "TIFF"), "wanted PNG or JPEG"),
    "WebP": (lambda path: image(RGB).save(path, "WEBP"), "wanted PNG or JPEG"),
    "one bit changed": (lambda path: changed(path, RGB), "not an image"),
    "claims 60000x60000": (lambda path: claiming(path, 60000, 60000), f"60000x60000 pixels, more than {MAX_PIXELS}"),
    "claims 12000x12000": (lambda path: claiming(path, 12000, 12000), f"12000x12000 pixels, more than {MAX_PIXELS}"),
    "EXIF, turned": (lambda path: image(RGB).save(path, "JPEG", exif=turned(6)), "EXIF orientation 6.*-auto-orient"),
    "EXIF, mirrored": (lambda path: image(RGB).save(path, "PNG", exif=turned(2)), "EXIF orientation 2"),
}


def test_a_chunk_that_claims_gigabytes_is_refused_by_the_header_alone(tmp_path):
    """Found by fuzzing: OpenCV takes memory for the 4 GB that a PNG's chunk claims before it reads them."""
    path = tmp_path / "a.png"
    claiming(path, 24, 16)
    data = bytearray(path.read_bytes())
    read_header(bytes(data), path)
    place = data.index(b"IDAT") - 4
    data[place : place + 4] = b"\xfa\xff\x9a\x3e"
    for cut in (len(data), place + 9):  # the claim as the last that a file holds
        with pytest.raises(ValueError, match="a.png: not an image"):
            read_header(bytes(data[:cut]), path)


def changed(path, rgb):
    image(rgb).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("case", REFUSED)
def test_kinds_of_images_that_are_refused(case, tmp_path):
    write, message = REFUSED[case]
    write(tmp_path / "image.png")
    with pytest.raises(ValueError, match=message) as error:
        read_rgb(tmp_path / "image.png", labelled=True)
    assert str(tmp_path / "image.png") in str(error.value)


def antialiased(rgb):
    small = rgb.copy()
    small[:, ::2] = (61, 93, 255)
    return cv2.GaussianBlur(small, (3, 3), 0)


def odd_pixel():
    rgb = ROAD.copy()
    rgb[0, 0] = 7
    return rgb


# name: (writer of the mask's path, what the line says beside the path)
MASKS = {
    "anti-aliased": (lambda path: image(antialiased(ROAD)).save(path), "colours .* not among the 9 of the palette"),
    "JPEG": (lambda path: image(antialiased(ROAD)).save(path, "JPEG"), "colours"),
    "class ids, not colours": (lambda path: image(ROAD[..., 0] + 2).save(path), r"\(2, 2, 2\): 6144 pixels"),
    "one odd pixel": (lambda path: image(odd_pixel()).save(path), r"\(7, 7, 7\): 1 pixels"),
    "another size": (lambda path: image(ROAD[:32]).save(path), "96x32, but 0000.png is 96x64"),
    "turned by EXIF": (lambda path: image(ROAD).save(path, exif=turned(3)), "EXIF orientation 3"),
    "truncated": (lambda path: shortened(path, ROAD, 0.5), "not an image"),
    "zero bytes": (lambda path: path.write_bytes(b""), "not an image"),
}  # fmt: skip


@pytest.fixture
def pair(tmp_path):
    """A sample whose mask can be replaced."""
    folders = [tmp_path / "Own" / "Own" / part for part in ("images", "gt_masks")]
    for folder, rgb in zip(folders, (RGB, ROAD), strict=True):
        folder.mkdir(parents=True)
        image(rgb).save(folder / "0000.png")
    return Sample("Own", *(folder / "0000.png" for folder in folders), LABELS)


@pytest.mark.parametrize("case", MASKS)
def test_kinds_of_masks_that_are_refused(case, pair):
    write, message = MASKS[case]
    write(pair.mask)
    with pytest.raises(ValueError, match=message) as error:
        load_sample(pair, (32, 64))
    assert str(pair.mask) in str(error.value)


NAMES = [
    "Straße 東京 🚗",
    "a b'c\"d;$(x)&",
    "x" * 240,
    "東" * 80,
    "=cmd|'C calc'!A0",
    "<script>",
    os.fsdecode(b"\xff\xfe"),
]


@pytest.mark.parametrize("stem", NAMES)
def test_any_name_is_read_cached_and_drawn(pair, tmp_path, stem):
    renamed = [path.rename(path.with_name(f"{stem}.png")) for path in (pair.image, pair.mask)]
    (sample,) = found(tmp_path, ["Own"], "train")
    assert sample == Sample("Own", *renamed, LABELS)
    (tmp_path / "cache").mkdir()
    first, again = (load_cached(tmp_path / "cache", sample, (32, 64)) for _ in range(2))
    assert all((one == other).all() for one, other in zip(first, again, strict=True))
    written = save_prediction(tmp_path, sample, "INT8" * 100, first[0], first[1], first[1], CLASSES)
    assert written.exists()
    assert len([*(tmp_path / "cache").iterdir(), *(tmp_path / "pictures").iterdir()]) == 2


def images(root):
    return root / "Town" / "Town" / "images"


def masks(root):
    return root / "Town" / "Town" / "gt_masks"


# name: (what is done to a good folder of 20 pairs, what the line says); all through the command line
FOLDERS = {
    "no such root": (lambda root: (root / "Town").rename(root / "Elsewhere"), "images: no such folder; expected ROOT"),
    "no images": (lambda root: empty(images(root)), "images: no .png, .jpg, .jpeg file"),
    "no masks": (lambda root: empty(masks(root)), "gt_masks: no .png file"),
    "a mask is missing": (lambda root: (masks(root) / "0003.png").unlink(), "no partner: images/0003.jpg"),
    "an image is missing": (lambda root: (images(root) / "0003.jpg").unlink(), "no partner: gt_masks/0003.png"),
    "duplicate stem": (lambda root: image(RGB).save(images(root) / "0003.png"), "same stem as another: 0003"),
    "too few to split": (lambda root: fewer(root, 9), "9 images; every tenth is validation, so 10 are the least"),
    "images is a file": (lambda root: replaced(images(root), b"x"), "images: no such folder"),
    "an image is a folder": (lambda root: replaced(images(root) / "0003.jpg"), "0003.jpg: Is a directory; "),
    "link in a circle": (lambda root: circle(images(root) / "0003.jpg"), "0003.jpg: Too many levels .*circle"),
    "folders linked in a circle": (lambda root: circle(images(root)), "images: "),
    "an image is a pipe": (lambda root: piped(images(root) / "0003.jpg"), "0003.jpg: a pipe, socket or device"),
    "a mask is a device": (lambda root: device(masks(root) / "0003.png"), "0003.png: a pipe, socket or device"),
    "link to nothing": (lambda root: linked(images(root) / "0003.jpg"), "0003.jpg: No such file"),
    "a truncated image": (lambda root: shortened(images(root) / "0003.jpg", RGB, 0.5), "0003.jpg: not an image"),
    "an odd mask": (lambda root: image(RGB).save(masks(root) / "0003.png"), "0003.png: 96x64, but 0003.jpg"),
}  # fmt: skip


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


def fewer(root, count):
    for part in ("images", "gt_masks"):
        for path in sorted((root / "Town/Town" / part).iterdir())[count:]:
            path.unlink()


def replaced(path, content=None):
    linked(path)
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)


def linked(path):
    if path.is_dir():
        empty(path)
        path.rmdir()
    else:
        path.unlink()
    path.symlink_to("nowhere")


def piped(path):
    path.unlink()
    os.mkfifo(path)


def device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def circle(path):
    linked(path)
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize("case", FOLDERS)
def test_a_run_on_bad_data_ends_in_one_line_and_leaves_no_file(case, tmp_path, capsys):
    write_dataset(tmp_path, "Town", 20, seed=0, size=(48, 96))
    change, message = FOLDERS[case]
    change(tmp_path)
    flags = ["-s", tmp_path / "out", "-r", tmp_path, "--datasets", "Town", "--workers", "0", "-e", "1"]
    line = refusal(tiny_run, [*flags, "--batch_size", "18"], capsys)
    assert re.search(message, line), line
    assert not [path for path in tmp_path.glob("out/*") if path.name != ".lock"]


def test_images_of_12_bits_train_a_network_once_their_bits_are_said(tmp_path, capsys):
    write_dataset(tmp_path, "Town", 20, seed=0, size=(48, 96))
    for path in images(tmp_path).iterdir():
        wide = cv2.imread(str(path)).astype(np.uint16) << 4
        path.unlink()
        cv2.imwrite(str(path.with_suffix(".png")), wide)
    flags = ["-s", tmp_path / "out", "-r", tmp_path, "--datasets", "Town", "--workers", "0", "-e", "1"]
    line = refusal(tiny_run, flags, capsys)
    assert re.search(r"images/00\d\d.png: stored with 16 bits a value, but the largest is \d+, of 12 bits", line), line
    call(tiny_run, [*flags, "--image_bits", "12", "--cache_dir", tmp_path / "cache"])
    assert (tmp_path / "out" / "final.pth").exists()
    path = found(tmp_path, ["Town"], "val")[0].image
    twelve = Sample("Town", path, masks(tmp_path) / f"{path.stem}.png", LABELS, 12)
    assert load_cached(tmp_path / "cache", twelve, (16, 32))[0].mean() > 30
    sixteen = load_cached(tmp_path / "cache", replace(twelve, image_bits=16), (16, 32))  # no entry of the other bits
    assert sixteen[0].max() <= 16


def test_files_of_other_kinds_are_told(tmp_path, caplog):
    write_dataset(tmp_path, "Kinds", 20, seed=0, size=(48, 96))
    for folder in ("images", "gt_masks"):
        image(RGB).save(tmp_path / "Kinds/Kinds" / folder / "more.bmp")
    with caplog.at_level("INFO"):
        assert len(found(tmp_path, ["Kinds"], "val")) == 2
    assert "images: 1 files are not read, being no .png, .jpg, .jpeg: more.bmp" in caplog.text
    assert "gt_masks: 1 files are not read, being no .png: more.bmp" in caplog.text


def test_an_error_of_a_worker_is_one_line_too(tmp_path, capsys):
    write_dataset(tmp_path, "Town", 20, seed=0, size=(48, 96))
    (tmp_path / "Town/Town/images/0003.jpg").write_bytes(b"no image")
    flags = ["-s", tmp_path / "out", "-r", tmp_path, "--datasets", "Town", "--workers", "1", "-e", "1"]
    line = refusal(tiny_run, flags, capsys)
    assert line.startswith(f"error: {tmp_path}/Town/Town/images/0003.jpg: not an image")


def test_workers_that_cannot_all_be_started_are_ended(tmp_path):
    """Workers ignore signals: a loader that failed in between would leave them, and the run would wait for them."""
    write_dataset(tmp_path, "Town", 20, seed=0, size=(48, 96))
    script = [sys.executable, "-m", "tests.tiny_run", "-s", tmp_path / "out", "-r", tmp_path, "--datasets", "Town"]
    few = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (48, 48))
    command = [*map(str, script), "--workers", "100", "-e", "1", "--threads", "1"]
    process = subprocess.run(command, cwd=ROOT, preexec_fn=few, capture_output=True, text=True, timeout=60)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].endswith("raise the limit of open files (ulimit -n), or use fewer --workers")


def test_an_unreadable_folder_is_named_with_the_cure(tmp_path, capsys, monkeypatch):
    """The tests may run as root, whom no permission stops: the refusal of the system is made."""
    write_dataset(tmp_path, "Town", 20, seed=0, size=(48, 96))

    def refuse(self):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    line = refusal(tiny_run, ["-s", tmp_path / "out", "-r", tmp_path, "--datasets", "Town"], capsys)
    assert line.endswith("Town/images: Permission denied; change its permissions, or give another place")


def test_a_folder_that_links_to_itself_is_searched_once(tmp_path):
    image(RGB).save(tmp_path / "a.png")
    (tmp_path / "again").symlink_to(tmp_path)
    assert find_images(tmp_path) == [tmp_path / "a.png"]


def test_fewer_images_than_asked_for_are_all_taken_and_it_is_said(tmp_path, caplog):
    write_dataset(tmp_path, "Few", 20, seed=0, size=(48, 96))
    with caplog.at_level("INFO"):
        assert len(spread(found(tmp_path, ["Few"], "val"), 7)) == 2
    assert "Few: 2 images, 7 asked for" in caplog.text
    assert len(SampleDataset(found(tmp_path, ["Few"], "val"), format_of((32, 32)))) == 2
