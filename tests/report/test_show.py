from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from common.data.drawing import BAR, GAP, SMALLEST_PANEL, overlay
from common.report.show import read_video, show, write_video
from common.runtimes.candidates import OpenOptions, open_candidates
from tests.benchmarked import HW, Guess, candidates
from tests.family import CLASSES, NAME, NETWORK

SIZE = (96, 256)  # height, width


@pytest.fixture
def models(tmp_path):
    return candidates(tmp_path, FP32=0.0, INT8=0.5)


def frame(level):
    return np.full((*SIZE, 3), level, np.uint8)


def test_an_image_becomes_a_picture_of_all_models(tmp_path, models):
    cv2.imwrite(str(tmp_path / "road.jpg"), frame(100))
    (written,) = show(tmp_path / "road.jpg", models, NETWORK, 1, tmp_path / "out")
    picture = cv2.imread(str(written), cv2.IMREAD_COLOR_RGB)
    height, width = SIZE
    assert picture.shape == (height + 2 * BAR, 3 * width + 2 * GAP, 3)
    expected = overlay(
        frame(100), np.where(np.arange(height) < height / 2, 0, 2)[:, None].repeat(width, axis=1), CLASSES
    )
    np.testing.assert_array_equal(picture[BAR:-BAR, width + GAP : 2 * width + GAP], expected)
    assert (picture[BAR:-BAR, 2 * (width + GAP) :] != expected).any()


def test_an_image_that_exif_turns_is_shown_upright(tmp_path, models):
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(rgb).save(tmp_path / "road.png", exif=exif)
    (written,) = show(tmp_path / "road.png", models, NETWORK, 1, tmp_path / "out")
    picture = cv2.imread(str(written), cv2.IMREAD_COLOR_RGB)
    scale = -(-SMALLEST_PANEL // SIZE[0])
    height, width = (scale * side for side in SIZE[::-1])
    upright = np.rot90(rgb, -1).repeat(scale, axis=0).repeat(scale, axis=1)
    np.testing.assert_array_equal(picture[BAR : BAR + height, :width], upright)


def test_an_image_of_12_bits_is_shown_as_bright_as_it_is(tmp_path, models):
    rgb = frame(0)
    rgb[:] = np.arange(SIZE[1])[:, None] % 256
    cv2.imwrite(str(tmp_path / "road.png"), rgb.astype(np.uint16) << 4)
    with pytest.raises(ValueError, match=r"road\.png: stored with 16 bits .* --image_bits 12"):
        show(tmp_path / "road.png", models, NETWORK, 1, tmp_path / "out")
    (written,) = show(tmp_path / "road.png", models, NETWORK, 1, tmp_path / "again", image_bits=12)
    np.testing.assert_array_equal(cv2.imread(str(written))[BAR:-BAR, : SIZE[1]], rgb)


def test_a_folder_becomes_a_picture_of_each_image(tmp_path, models):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.png", "deep/a.png"):
        cv2.imwrite(str(tmp_path / "in" / name), frame(50))
    written = show(tmp_path / "in", models, NETWORK, 1, tmp_path / "out")
    assert [path.name for path in written] == ["0000_b.png", "0001_a.png"]


def test_a_video_becomes_a_video_of_as_many_frames(tmp_path, models):
    write_video(tmp_path / "drive.mp4", (frame(40 * number) for number in range(5)), rate=10)
    (written,) = show(tmp_path / "drive.mp4", models, NETWORK, 1, tmp_path / "out")
    frames, rate, count = read_video(written)
    frames = list(frames)
    assert (written.name, rate, count, len(frames)) == ("drive.mp4", 10, 5, 5)
    assert frames[0].shape == (SIZE[0] + 2 * BAR, 3 * SIZE[1] + 2 * GAP, 3)
    assert frames[4][BAR + 20, 20].mean() > 140 > 30 > frames[0][BAR + 20, 20].mean()


def test_a_real_file_is_shown_as_its_predictor_sees_it(tmp_path):
    """An ONNX file of one convolution that calls red background, green foreground and blue road."""
    network = torch.nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.eye(3)[:, :, None, None])
    path = tmp_path / "colours.onnx"
    torch.onnx.export(network, (torch.zeros(1, 3, *HW),), path, dynamo=True, verbose=False)
    colours = np.zeros((*SIZE, 3), np.uint8)
    for index, column in enumerate(np.array_split(np.arange(SIZE[1]), 4)[:3]):
        colours[:, column, index] = 255
    cv2.imwrite(str(tmp_path / "colours.png"), colours[..., ::-1])
    options = OpenOptions(torch.device("cpu"), 1, NAME)
    models = open_candidates([("colours", path, ".onnx")], options)
    assert models["colours"].input_hw == HW
    (written,) = show(tmp_path / "colours.png", models, NETWORK, 1, tmp_path / "out")
    picture = cv2.imread(str(written), cv2.IMREAD_COLOR_RGB)[BAR:-BAR, SIZE[1] + GAP :]
    expected = overlay(colours, np.arange(SIZE[1])[None].repeat(SIZE[0], axis=0) // 64 % 3, CLASSES)
    np.testing.assert_array_equal(picture[:, :192], expected[:, :192])


def test_what_cannot_be_shown_is_named_and_leaves_nothing(tmp_path, models):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        show(tmp_path / "absent", models, NETWORK, 1, tmp_path / "out")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="neither an image nor a video"):
        show(tmp_path / "notes.txt", models, NETWORK, 1, tmp_path / "out")
    (tmp_path / "broken.mp4").write_text("x")
    with pytest.raises(ValueError, match="not a video"):
        show(tmp_path / "broken.mp4", models, NETWORK, 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000)])
def test_an_image_that_is_a_line_is_refused(size, tmp_path, models):
    cv2.imwrite(str(tmp_path / "line.png"), np.zeros((*size, 3), np.uint8))
    with pytest.raises(ValueError, match=r"line\.png: .* one side more than 16 times the other; cut it"):
        show(tmp_path / "line.png", models, NETWORK, 1, tmp_path / "out")


def test_an_output_that_is_no_map_of_the_classes_is_not_drawn(tmp_path, models):
    cv2.imwrite(str(tmp_path / "a.png"), frame(50))
    flat = replace(models["FP32"], open=lambda threads: lambda images: torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"FLAT: output \(1, 3\), wanted \(1, 3, 32, 64\)"):
        show(tmp_path / "a.png", {"FLAT": flat}, NETWORK, 1, tmp_path / "out")


def test_the_first_frame_is_not_a_models_first_run(tmp_path):
    seen = []

    class Noting(Guess):
        def __call__(self, images):
            seen.append(float(images.abs().max()))
            return super().__call__(images)

    models = {label: replace(one, open=partial(Noting, 0.0)) for label, one in candidates(tmp_path, a=0).items()}
    cv2.imwrite(str(tmp_path / "road.png"), frame(100))
    show(tmp_path / "road.png", models, NETWORK, 1, tmp_path / "out")
    assert seen[0] == 0  # the warm-up
    assert len(seen) == 2
    assert seen[1] > 0
