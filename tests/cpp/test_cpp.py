"""The C++ programs give the masks and outputs of Python; built where compiler and libraries are there, else skipped."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import convert_pytorch_to_onnx
import trace_pytorch_model
from common.data.camera import CameraFormat
from common.data.decoding import read_rgb
from common.data.drawing import overlay
from common.export.calibration import image_preparer
from common.export.camera import CameraFile
from common.export.pte_writer import export_pte
from common.networks.checkpoints import published_state
from common.networks.metadata import TORCH_FILE, as_metadata, describe, of_camera
from common.quantization.pt2e import quantize_after_training
from common.quantization.settings import QuantizationSettings
from common.runtimes.predictors import OnnxPredictor, TorchPredictor
from common.runtimes.pte import PtePredictor
from examples.make_scenes import write_dataset, write_image
from models.family import NETWORKS
from tests.family import CLASSES

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
HW = (64, 128)
CPU = torch.device("cpu")
ONNXRUNTIME_ROOT = Path(os.environ.get("ONNXRUNTIME_ROOT", "/usr"))


def onnxruntime_flags():
    """The headers of ONNXRUNTIME_ROOT with the very library of the Python package, so that both compute the same."""
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    return [f"-DONNXRUNTIME_ROOT={ONNXRUNTIME_ROOT}", f"-DONNXRUNTIME_LIBRARY={library}"]


def build(folder, *flags):
    """Build a program in build/, where a second run finds it done, and return its path."""
    output = BUILD / folder
    for command in (["cmake", "-S", ROOT / folder, "-B", output, *flags], ["cmake", "--build", output]):
        process = subprocess.run(command, capture_output=True, text=True)
        assert process.returncode == 0, process.stdout + process.stderr
        assert "warning:" not in process.stderr, process.stderr
    return output / f"deploy_{folder}"


def require_tools():
    if missing := [tool for tool in ("g++", "cmake") if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    if not Path("/usr/include/opencv4").is_dir() or not Path("/usr/include/nlohmann/json.hpp").is_file():
        pytest.skip("needs OpenCV and nlohmann-json: apt-get install libopencv-dev nlohmann-json3-dev")


@pytest.fixture(scope="module")
def libtorch():
    require_tools()
    return build("libtorch", f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}")


@pytest.fixture(scope="module")
def onnx_rt():
    require_tools()
    if not list(ONNXRUNTIME_ROOT.glob("include/**/onnxruntime_cxx_api.h")):
        pytest.skip("needs the headers of ONNX Runtime below ONNXRUNTIME_ROOT, which its Python package does not bring")
    return build("onnx_rt", *onnxruntime_flags())


@pytest.fixture(scope="module")
def executorch_rt():
    require_tools()
    return build("executorch_rt", f"-DPython3_EXECUTABLE={sys.executable}")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Generated scenes as PNG, of two sizes, one of them neither a multiple of the input nor of its shape.

    One is turned by EXIF.
    """
    root = tmp_path_factory.mktemp("scenes")
    write_dataset(root, "Town", 4, seed=0, size=(96, 192))
    write_dataset(root, "Village", 2, seed=1, size=(131, 157))
    folder = tmp_path_factory.mktemp("images")
    for path in root.glob("*/*/images/*.jpg"):
        write_image(folder / f"{path.parts[-3]}{path.stem}.png", read_rgb(path))
    exif, turned = Image.Exif(), next(folder.glob("Village*"))
    exif[0x0112] = 6
    Image.open(turned).save(turned, exif=exif)
    return folder


@pytest.fixture(scope="module")
def export(tmp_path_factory, images):
    """A function: the file that a script writes of a seeded network of a small width."""
    folder = tmp_path_factory.mktemp("files")

    @cache
    def write(script, name, ending, *flags):
        path, weights = folder / f"{name}{ending}", folder / f"{name}.pth"
        torch.manual_seed(0)
        model = NETWORKS[name].build(width=1 / 16).eval()
        if name == "SceneSeg":
            balance_classes(model)
        torch.save(published_state(name, model), weights)
        arguments = ["-n", name, "-p", weights, "-o", path, "--input_hw", "{},{}".format(*HW), *flags, "--threads", 1]
        script.main(script.get_args_parser().parse_args([str(argument) for argument in arguments]))
        return path

    return write


@torch.no_grad()
def balance_classes(model):
    """Let every class have some of the pixels, which random weights alone do not."""
    last = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    last.bias -= model(torch.randn(1, 3, *HW)).mean(dim=(0, 2, 3))


def call(program, *arguments):
    command = [program, *arguments, "--threads", "1"]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)


def enlarge(ids, hw):
    """Nearest pixel by centre, in whole numbers: pixel i of n has its centre at (i + 1/2) / n."""
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(hw, ids.shape, strict=True))
    return ids[rows[:, None], columns]


def check_pictures(program, model, images, predict, folder):
    """Every mask and overlay of the program is the one that Python makes, pixel by pixel."""
    process = call(program, model, images, "--output", folder)
    assert process.returncode == 0, process.stderr
    prepare = image_preparer(NETWORKS["SceneSeg"], HW)
    seen = set()
    for path in sorted(images.iterdir()):
        rgb = read_rgb(path)
        ids = predict(prepare(path)).argmax(dim=1)[0].to(torch.uint8).numpy()
        ids = enlarge(ids, rgb.shape[:2])
        seen |= set(np.unique(ids))
        assert np.array_equal(read_rgb(folder / f"{path.stem}_mask.png"), CLASSES.colourise(ids)), path.name
        assert np.array_equal(read_rgb(folder / f"{path.stem}_overlay.png"), overlay(rgb, ids, CLASSES)), path.name
    assert len(seen) > 1, "one class everywhere shows nothing"
    return process.stdout


def torchscript(path):
    return TorchPredictor(torch.jit.load(path), CPU)


def test_libtorch_draws_the_masks_of_python(libtorch, export, images, tmp_path):
    model = export(trace_pytorch_model, "SceneSeg", ".pt")
    printed = check_pictures(libtorch, model, images, torchscript(model), tmp_path)
    assert "LibTorch cpu, threads 1" in printed
    assert "images: 6" in printed


@pytest.mark.parametrize("flags", [[], ["--int8", "--num_calibration_samples", 2]], ids=["fp32", "int8"])
def test_onnx_runtime_draws_the_masks_of_python(onnx_rt, export, images, tmp_path, flags):
    calibration = ["--calibration_data", images] if flags else []
    model = export(convert_pytorch_to_onnx, "SceneSeg", ".onnx", *flags, *calibration)
    printed = check_pictures(onnx_rt, model, images, OnnxPredictor(model, 1), tmp_path)
    assert "CPUExecutionProvider" in printed


@pytest.mark.parametrize(
    "form",
    [
        CameraFormat("nhwc", "uint8", "bgr", "classes"),
        CameraFormat("nchw", "uint8"),
        CameraFormat("nhwc", "float32", "bgr"),
    ],
    ids=str,
)
def test_onnx_runtime_reads_the_form_of_a_camera_from_the_file(onnx_rt, export, images, tmp_path, form):
    """The masks of the plain file; a file that says another type than it takes is refused."""
    plain = export(convert_pytorch_to_onnx, "SceneSeg", ".plain.onnx")
    proto, network = onnx.load(plain), NETWORKS["SceneSeg"]
    CameraFile(network, HW, form).rewrite(proto)
    said = {entry.key: entry.value for entry in proto.metadata_props}
    onnx.helper.set_model_props(proto, said | as_metadata(of_camera(form, network)))
    onnx.save(proto, tmp_path / "camera.onnx")
    check_pictures(onnx_rt, tmp_path / "camera.onnx", images, OnnxPredictor(plain, 1), tmp_path / "pictures")
    image = next(images.iterdir())
    process = call(onnx_rt, tmp_path / "camera.onnx", image, "--output", tmp_path / "raw", "--raw", "--warmup", 0)
    assert process.returncode == 0, process.stderr
    raw = np.load(tmp_path / "raw" / f"{image.stem}_output.npy")
    assert (raw.dtype, raw.shape[1:]) == ((np.uint8, HW) if form.output == "classes" else (np.float32, (3, *HW)))
    other = replace(form, type="float32" if form.type == "uint8" else "uint8")
    onnx.helper.set_model_props(proto, said | as_metadata(of_camera(other, network)))
    onnx.save(proto, tmp_path / "lie.onnx")
    one_line(call(onnx_rt, tmp_path / "lie.onnx", image), "lie.onnx", "of another type than its description says")


@pytest.fixture(scope="module")
def program_file(tmp_path_factory, images):
    """An ExecuTorch program of a network of two layers that calls itself SceneSeg."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 1)).eval()
    balance_classes(model)
    prepare = image_preparer(NETWORKS["SceneSeg"], HW)
    calibration = [prepare(path) for path in sorted(images.iterdir())]
    int8 = quantize_after_training(model, (3, *HW), QuantizationSettings(), calibration)
    path = tmp_path_factory.mktemp("programs") / "SceneSeg.pte"
    described = describe("SceneSeg", NETWORKS["SceneSeg"], 1, "int8", (3, *HW), {})
    export_pte(int8, path, (3, *HW), described, lambda predictor: [], threads=1)
    return path


def test_executorch_draws_the_masks_of_python(executorch_rt, program_file, images, tmp_path):
    predict = PtePredictor(program_file, 1)
    printed = check_pictures(executorch_rt, program_file, images, predict, tmp_path)
    assert "ExecuTorch XNNPACK, threads 1" in printed
    check_raw(executorch_rt, program_file, "SceneSeg", images, predict, tmp_path / "raw")


def check_raw(program, model, name, images, predict, folder):
    """Every raw output is the one of Python, within 1e-5 of its range."""
    process = call(program, model, images, "--output", folder, "--raw", "--warmup", 0)
    assert process.returncode == 0, process.stderr
    assert "no picture is written" not in process.stderr
    prepare = image_preparer(NETWORKS[name], HW)
    for path in images.iterdir():
        expected = predict(prepare(path)).numpy()
        actual = np.load(folder / f"{path.stem}_output.npy")
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.ptp(expected))
    assert bool(list(folder.glob("*.png"))) == (name == "SceneSeg")


def test_libtorch_gives_the_depth_of_python(libtorch, export, images, tmp_path):
    model = export(trace_pytorch_model, "Scene3D", ".pt")
    check_raw(libtorch, model, "Scene3D", images, torchscript(model), tmp_path)


def test_onnx_runtime_gives_the_lanes_of_python(onnx_rt, export, images, tmp_path):
    model = export(convert_pytorch_to_onnx, "EgoLanes", ".onnx")
    check_raw(onnx_rt, model, "EgoLanes", images, OnnxPredictor(model, 1), tmp_path)


def one_line(process, *words):
    assert process.returncode == 1, process.stderr
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: "), line
    for word in words:
        assert str(word) in line


@pytest.mark.parametrize("program", ["libtorch", "onnx_rt", "executorch_rt"])
def test_bad_input_is_one_line_and_exit_1(program, request, export, images, tmp_path):
    program = request.getfixturevalue(program)
    torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.zeros(1)), tmp_path / "bare.pt")
    image, broken, output = next(images.iterdir()), tmp_path / "broken.png", ["--output", tmp_path / "out"]
    broken.write_bytes(image.read_bytes()[:300])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    if program.name == "deploy_libtorch":
        good = export(trace_pytorch_model, "Scene3D", ".pt")
        one_line(call(program, tmp_path / "bare.pt", image), "description")
        if not torch.cuda.is_available():
            one_line(call(program, good, image, "--device", "cuda"), "--device cuda")
    elif program.name == "deploy_executorch_rt":
        good = request.getfixturevalue("program_file")
    else:
        good = export(convert_pytorch_to_onnx, "EgoLanes", ".onnx")
        one_line(call(program, good, image, "--provider", "cuda"), "CPUExecutionProvider")
    one_line(call(program, tmp_path / "absent", image), "absent")
    one_line(call(program, tmp_path / "text.png", image), "text.png", "cannot load")
    one_line(call(program, good, tmp_path / "absent.png"), "absent.png")
    one_line(call(program, good, tmp_path / "empty"), "empty")
    one_line(call(program, good, broken, "--raw", *output), "broken.png")
    one_line(call(program, good, tmp_path / "text.png", "--raw", *output), "text.png")
    cv2.imwrite(str(tmp_path / "dark.png"), np.full((64, 128, 3), 1000, np.uint16))
    one_line(call(program, good, tmp_path / "dark.png", "--raw", *output), "dark.png", "the largest is 1000")
    one_line(call(program, good, image, "--raw", "--output", broken / "x"), "x")
    assert not list((tmp_path / "out").iterdir())
    assert call(program, good).returncode == 2
    assert call(program, good, image, "--nonsense").returncode == 2
    assert call(program, "--help").returncode == 0


def test_pixels_are_those_of_opencv_in_both_languages(libtorch, tmp_path):
    """The input itself, bit by bit, resized and letterboxed, as a network that is the identity hands it back."""
    rgb = np.random.default_rng(0).integers(0, 256, (77, 131, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "noise.png"), rgb)
    for name in ("SceneSeg", "AutoSpeed"):
        network, hw = NETWORKS[name], NETWORKS[name].input_shape[1:]
        traced = torch.jit.trace(torch.nn.Identity(), torch.zeros(1, 3, *hw))
        description = describe(name, network, 1, "fp32", network.input_shape, {}) | {"classes": []}
        notes = {TORCH_FILE: json.dumps(description)}
        torch.jit.save(traced, tmp_path / "identity.pt", _extra_files=notes)
        process = call(libtorch, tmp_path / "identity.pt", tmp_path / "noise.png", "--raw", "--output", tmp_path)
        assert process.returncode == 0, process.stderr
        expected = image_preparer(network, hw)(tmp_path / "noise.png").numpy()
        assert np.array_equal(np.load(tmp_path / "noise_output.npy"), expected), name
