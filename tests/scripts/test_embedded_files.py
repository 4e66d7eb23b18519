"""Files for embedded hosts, by the flags of the scripts: integer operators for pairs, and the form of a camera."""

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import benchmark_onnx_models as compare
import benchmark_qat_model as benchmark
import convert_pytorch_to_onnx as convert
import quantize_model_sceneseg as quantize
from common.data.drawing import BAR, GAP
from common.runtimes.predictors import OnnxPredictor
from tests.command_lines import call, refusal
from tests.own_folder import TWO_IMAGES, own_folder, write_drive
from tests.town import CLASSES, DATA, write_town

NAME, HW = "town_net:NET", (36, 52)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)  # blue, green, red
TOWN_NET = f"""
from torch import nn

from models import Network


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.SiLU())
        self.classify = nn.ConvTranspose2d(8, 5, 2, 2)

    def forward(self, image):
        return self.classify(self.body(image))


NET = Network(
    build=Net,
    input_shape=(3, *{HW}),
    mean={MEAN},
    std={STD},
    channel_order="BGR",
    size_multiple=2,
    classes={tuple(CLASSES)},
)
"""
IMAGES = "data/Town/Town/images"
CONVERT = ["-n", NAME, "-p", "weights.pth"]
INT8 = ["--int8", "--calibration_data", IMAGES, "--num_calibration_samples", 4]
CAMERA = ["--input_layout", "nhwc", "--input_type", "uint8", "--channels", "rgb", "--output", "classes"]
MEASURE = ["-n", NAME, "--warmup_runs", 0, "--num_samples_per_dataset", 2, "--timed_runs", 1]
FRAMES = np.random.default_rng(0).integers(0, 256, (2, *HW, 3), np.uint8)  # RGB


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with own_folder(tmp_path_factory.mktemp("own"), "town_net", TOWN_NET) as path:
        write_town(path / "data")
        yield path


@pytest.fixture(scope="module")
def write(folder):
    """A function: the file of a conversion with some flags."""
    made = {}

    def conversion(*flags):
        if flags not in made:
            made[flags] = folder / f"{len(made)}.onnx"
            call(convert, [*CONVERT, "-o", made[flags], *flags])
        return made[flags]

    return conversion


@pytest.fixture(scope="module")
def checkpoint(folder):
    """Trained for ONNX Runtime."""
    flags = ["-e", 1, "--batch_size", 4, "--samples_per_epoch", 4, "--num_calibration_samples", 4]
    call(quantize, ["-n", NAME, "-fp32", "weights.pth", "-r", "data", *DATA, "-s", "qat", *flags])
    return folder / "qat" / "qat_model_final_calibrated.pth"


def benchmarked(checkpoint, *flags):
    """The results and the QAT file of a benchmark of the checkpoint."""
    call(benchmark, [*MEASURE, "--qat_checkpoint_path", checkpoint, "--num_calibration_samples", 4, *flags])
    made = checkpoint.parent / "onnx_models"
    return json.loads((made / "results.json").read_text()), next(made.glob("*QAT_INT8_final.onnx"))


def results_of(name):
    return json.loads(next(Path(name).glob("*/results.json")).read_text())


def planes(frames):
    """What the plain file takes: normalised, blue first."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
    return (frames[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255) - mean) / std


def run(path, images):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(images)})[0]


def logits_of(path):
    """Of the frames, by the plain file."""
    return OnnxPredictor(path, 1)(torch.from_numpy(planes(FRAMES))).numpy()


def integer_convolutions(path):
    return sum(node.op_type == "QLinearConv" for node in onnx.load(path).graph.node)


def usage(script, arguments, capsys):
    """What is said where flags do not go together: exit code 2."""
    with pytest.raises(SystemExit) as exit_info:
        call(script, arguments)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def test_an_optimized_file_without_training(write, capsys):
    plain, optimized = write(*INT8), write(*INT8, "--optimized")
    captured = capsys.readouterr()
    assert "optimized by ONNX Runtime" in captured.err and "3 QLinearConv" in captured.err
    assert "output: ONNX Runtime against PyTorch FP32" in captured.out
    assert integer_convolutions(optimized) == 3
    images = torch.from_numpy(planes(FRAMES))
    assert torch.equal(OnnxPredictor(plain, 1)(images), OnnxPredictor(optimized, 1, optimize=False)(images))
    call(convert, ["--check", optimized])
    said = capsys.readouterr().out
    assert "keeps all rules of ONNX Runtime" in said and "no file of pairs, for ONNX Runtime alone" in said
    assert "breaks" in refusal(convert, ["--check", optimized, "--target", "tensorrt"], capsys)
    flags = ["--model", f"plain={plain}", "--int8_model_path", optimized, "--output_dir_base", "optimized"]
    call(compare, [*MEASURE, "--images", IMAGES, *flags])
    results = results_of("optimized")
    assert [model["precision"] for model in results["models"].values()] == ["int8", "int8"]
    assert results["models"]["ONNX INT8"]["outputs"]["output"]["largest_difference"] == 0


def test_where_optimized_is_wrong_usage(folder, capsys):
    for flags in ([], ["--half"]):
        said = usage(convert, [*CONVERT, "-o", "x.onnx", "--optimized", *flags], capsys)
        assert "argument --optimized: is for --int8" in said
    for target in ("tensorrt", "openvino", "executorch"):
        said = usage(convert, [*CONVERT, *INT8, "-o", "x.onnx", "--optimized", "--target", target], capsys)
        assert "argument --optimized: writes ONNX Runtime's own operators" in said


@pytest.mark.parametrize("precision", [(), ("--half",), tuple(INT8)], ids=["fp32", "fp16", "int8"])
def test_bytes_in_and_the_classes_of_the_plain_file_out(write, precision):
    classes = run(write(*precision, *CAMERA), FRAMES)
    expected = logits_of(write(*precision)).argmax(1)
    assert classes.dtype == np.uint8 and len(np.unique(expected)) > 2
    np.testing.assert_array_equal(classes, expected)


@pytest.mark.parametrize(
    ("flags", "taken"),
    [
        (("--input_layout", "nhwc"), lambda frames: planes(frames).transpose(0, 2, 3, 1)),
        (("--input_type", "uint8"), lambda frames: frames[..., ::-1].transpose(0, 3, 1, 2)),
        (("--channels", "rgb"), lambda frames: planes(frames)[:, ::-1]),
        (("--output", "classes"), planes),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else "",
)
def test_each_flag_alone(write, flags, taken):
    expected = logits_of(write())
    expected = expected.argmax(1) if flags[0] == "--output" else expected
    np.testing.assert_array_equal(run(write(*flags), taken(FRAMES)), expected)


def test_the_defaults_write_the_plain_file(write):
    """Blue first is this network's own order."""
    said = ("--input_layout", "nchw", "--input_type", "float32", "--channels", "bgr", "--output", "logits")
    assert write(*said).read_bytes() == write().read_bytes()


def test_a_camera_beside_other_flags(write):
    both = write(*INT8, *CAMERA, "--optimized")
    expected = logits_of(write(*INT8)).argmax(1)
    optimized = OnnxPredictor(both, 1, optimize=False)(torch.from_numpy(FRAMES)).numpy()
    np.testing.assert_array_equal(optimized, expected)
    assert integer_convolutions(both) == 3
    for target in ("openvino", "tensorrt"):
        flags = (*INT8, "--target", target, "--opset", 17, "--batch", 1)
        one = run(write(*flags, *CAMERA), FRAMES[:1])
        plain = OnnxPredictor(write(*flags), 1)(torch.from_numpy(planes(FRAMES[:1]))).numpy()
        np.testing.assert_array_equal(one, plain.argmax(1))


def test_the_benchmark_scores_what_the_camera_sees(write):
    """The same accuracy to the last digit, from files that take other images and give maps of classes."""
    files = {"plain": write(), "camera": write(*CAMERA), "int8": write(*INT8), "int8 camera": write(*INT8, *CAMERA)}
    models = [part for name, path in files.items() for part in ("--model", f"{name}={path}")]
    flags = ["--dataset_root", "data", *DATA, "--output_dir_base", "scored", "--thread_counts", 1]
    call(compare, [*MEASURE, *flags, *models])
    found = results_of("scored")["models"]
    for plain, camera in (("plain", "camera"), ("int8", "int8 camera")):
        assert found[plain]["overall"] == found[camera]["overall"]
    assert found["plain"]["overall"] != found["int8"]["overall"] or found["int8"]["precision"] == "int8"


def test_a_look_shows_the_classes_of_the_camera(write, folder):
    models = ["--model", f"plain={write()}", "--model", f"camera={write(*CAMERA)}"]
    call(compare, ["-n", NAME, "--show", f"{IMAGES}/09.png", "--output_dir_base", "look", *models])
    (path,) = (folder / "look").rglob("*.png")
    picture = cv2.imread(str(path))
    width = (picture.shape[1] - 2 * GAP) // 3
    plain, camera = (picture[BAR:, place * (width + GAP) :][:, :width] for place in (1, 2))
    rows = round(width * 90 / 131)
    np.testing.assert_array_equal(plain[:rows], camera[:rows])


def test_outputs_are_compared_from_a_cameras_bytes_but_not_its_classes(write, capsys):
    flags = [*MEASURE, "--images", IMAGES, "--model", f"plain={write()}", "--output_dir_base", "outputs"]
    logits = write("--input_layout", "nhwc", "--input_type", "uint8")
    call(compare, [*flags, "--model", f"camera={logits}", "--thread_counts", 1])
    assert results_of("outputs")["models"]["camera"]["outputs"]["output"]["largest_difference"] == 0
    capsys.readouterr()
    said = refusal(compare, [*flags, "--model", f"camera={write(*CAMERA)}"], capsys)
    assert "camera: gives a map of classes, where outputs are compared" in said


def test_a_checkpoint_becomes_an_optimized_file_for_a_camera(checkpoint):
    flags = [*DATA, "--batch", 1, "--compare_ptq", "weights.pth"]
    before, path = benchmarked(checkpoint, "--dataset_root", "data", *flags)
    expected = OnnxPredictor(path, 1)(torch.from_numpy(planes(FRAMES[:1]))).numpy().argmax(1)
    results, path = benchmarked(checkpoint, "--dataset_root", "data", *flags, *CAMERA, "--optimized")
    np.testing.assert_array_equal(OnnxPredictor(path, 1, optimize=False)(torch.from_numpy(FRAMES[:1])), expected)
    assert integer_convolutions(path) == 3
    for label in ("ONNX FP32", "ONNX INT8 PTQ", "ONNX INT8"):
        assert results["models"][label]["overall"] == before["models"][label]["overall"]
    assert results["models"]["ONNX INT8"]["precision"] == "int8"


def test_a_checkpoint_becomes_a_file_for_a_camera_without_labels(checkpoint):
    flags = ["--images", IMAGES, "--workers", 0, *CAMERA[:-2]]
    results, path = benchmarked(checkpoint, *flags, "-fp32", "weights.pth")
    assert results["models"]["ONNX INT8"]["outputs"]["output"]["equal_pixels"] > 0.9
    assert run(path, FRAMES).shape == (2, len(CLASSES), *HW)


def test_where_the_form_of_a_camera_is_wrong_usage(folder, checkpoint, capsys):
    said = usage(convert, [*CONVERT, *INT8, "-o", "x.pte", "--target", "executorch", *CAMERA[:2]], capsys)
    assert "argument --input_layout: is for ONNX files; --target executorch takes .pte files" in said
    flags = [*MEASURE, "--qat_checkpoint_path", checkpoint, "--images", IMAGES, "--output", "classes"]
    assert "argument --output: classes are scored on masks" in usage(benchmark, flags, capsys)
    said = usage(convert, ["--check", "x.onnx", "--input_type", "uint8"], capsys)
    assert "argument --input_type: not allowed with argument --check" in said


def test_a_network_of_two_images_is_refused_in_one_line(tmp_path, capsys):
    with own_folder(tmp_path, "two_images", TWO_IMAGES):
        write_drive(tmp_path / "drive", 2)
        flags = ["-n", "two_images:NET", "-p", "weights.pth", "-o", "x.onnx"]
        said = refusal(convert, [*flags, "--input_type", "uint8"], capsys)
        assert "two_images:NET takes 2 images; wanted one image" in said
        assert "is a network for driving" in refusal(convert, [*flags, "--output", "classes"], capsys)
        assert not Path("x.onnx").exists()
