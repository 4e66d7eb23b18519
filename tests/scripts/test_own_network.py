"""A network and labels of a user's own through all scripts: a file in the current folder, masks of ids, labels.json."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
import pytest
import torch

from common.data.drawing import BAR, GAP
from common.networks.checkpoints import load_network, read_checkpoint
from common.runtimes.onnx_files import read_graph, stored_precision
from tests.command_lines import call, refusal
from tests.town import CLASSES, DATA, LABELS, write_town
from tests.town import HW as FILE_HW

ROOT = Path(__file__).resolve().parents[2]
NAME = "tiny_net:NET"
HW = (36, 52)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)  # blue, green, red
MODULE = f"""
from torch import nn

from models import Network


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.PReLU(8))
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 2, 2, bias=False), nn.BatchNorm2d(8), nn.PReLU(8))
        self.last = nn.BatchNorm2d(8)
        self.classify = nn.ConvTranspose2d(8, 5, 2, 2)

    def forward(self, image):
        x = self.first(image)
        return self.classify(self.last(x + self.second(x)))


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The user's folder: the network, its weights, and a dataset of scenes of rectangles; the current folder."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "tiny_net.py").write_text(MODULE)
    write_town(folder / "data")
    before, path = Path.cwd(), [*sys.path]
    os.chdir(folder)
    yield folder
    os.chdir(before)
    sys.path[:] = path
    sys.modules.pop("tiny_net", None)


def script(name, *arguments):
    call(importlib.import_module(name), arguments)


@pytest.fixture(scope="module")
def weights(folder):
    """A state dict from DataParallel, as people save it, of random weights that differ between the classes."""
    sys.path.insert(0, str(folder))
    torch.manual_seed(1)
    model = importlib.import_module("tiny_net").Net()
    for batch_norm in (model.first[1], model.second[1], model.last):
        torch.nn.init.uniform_(batch_norm.running_mean, -0.5, 0.5)
        torch.nn.init.uniform_(batch_norm.running_var, 0.5, 2)
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, "weights.pth")
    return folder / "weights.pth"


@pytest.fixture(scope="module")
def fp32_onnx(folder, weights):
    """Written by a process of its own, which finds the module in the folder that it is started in."""
    command = [sys.executable, ROOT / "convert_pytorch_to_onnx.py", "-n", NAME, "-p", weights, "-o", "net.onnx"]
    process = subprocess.run([*map(str, command), "--threads", "1"], cwd=folder, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "output: ONNX Runtime against PyTorch FP32" in process.stdout
    return folder / "net.onnx"


@pytest.fixture(scope="module")
def int8_onnx(folder, weights):
    arguments = ["-n", NAME, "-p", weights, "-o", "int8.onnx", "--int8", "--calibration_data", "data/Town/Town/images"]
    script("convert_pytorch_to_onnx", *arguments)
    return folder / "int8.onnx"


@pytest.fixture(scope="module")
def qat(folder, weights):
    """Two steps of quantization-aware training."""
    steps = ["-e", 1, "--samples_per_epoch", 8, "--batch_size", 4, "--num_calibration_samples", 4]
    script("quantize_model_sceneseg", "-n", NAME, "-fp32", weights, "-s", "qat", "-r", "data", *DATA, *steps)
    return folder / "qat" / "qat_model_final_calibrated.pth"


@pytest.fixture(scope="module")
def qat_results(folder, qat):
    flags = ["--num_calibration_samples", 4, "--warmup_runs", 0, "--sensitivity", 1]
    script("benchmark_qat_model", "-n", NAME, "--qat_checkpoint_path", qat, "--dataset_root", "data", *DATA, *flags)
    return json.loads((folder / "qat" / "onnx_models" / "results.json").read_text())


@pytest.fixture(scope="module")
def results(folder, weights, fp32_onnx, int8_onnx):
    models = ["--pytorch_model_path", weights, "--fp32_model_path", fp32_onnx, "--int8_model_path", int8_onnx]
    flags = ["--dataset_root", "data", *DATA, "--output_dir_base", "results", "--warmup_runs", 0, "--save_outputs"]
    script("benchmark_onnx_models", "-n", NAME, *models, *flags)
    (path,) = (folder / "results").rglob("results.json")
    return json.loads(path.read_text())


def input_of(path):
    """An image file as the network takes it, by OpenCV and NumPy alone."""
    bgr = cv2.resize(cv2.imread(str(path)), HW[::-1], interpolation=cv2.INTER_LINEAR)
    return (((bgr / 255 - MEAN) / STD).transpose(2, 0, 1)[None]).astype(np.float32)


def scores_by_hand(model, folder):
    """IoU of the classes that labels name, over the validation images, from the outputs of an ONNX file."""
    session = ort.InferenceSession(model)
    hits, union = dict.fromkeys(CLASSES, 0), dict.fromkeys(CLASSES, 0)
    for stem in ("09", "19"):
        image = input_of(folder / f"data/Town/Town/images/{stem}.png")
        predicted = np.array(CLASSES)[session.run(None, {"input": image})[0][0].argmax(axis=0)]
        mask = cv2.imread(str(folder / f"data/Town/Town/gt_masks/{stem}.png"), cv2.IMREAD_UNCHANGED)
        rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(HW, FILE_HW, strict=True))
        target = np.vectorize(lambda value: LABELS[str(value)] or "")(mask[np.ix_(rows, columns)])
        for name in CLASSES:
            known = target != ""
            hits[name] += int((known & (predicted == name) & (target == name)).sum())
            union[name] += int((known & ((predicted == name) | (target == name))).sum())
    return {name: hits[name] / union[name] for name in ("sky", "road", "car")}


def test_the_onnx_file_says_what_it_is_and_computes_the_network(fp32_onnx, weights):
    session = ort.InferenceSession(fp32_onnx)
    assert [(each.name, each.shape) for each in session.get_inputs()] == [("input", ["batch", 3, *HW])]
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["network"] == NAME
    assert json.loads(metadata["classes"]) == CLASSES
    palette = json.loads(metadata["palette"])
    assert list(palette) == CLASSES and len({tuple(colour) for colour in palette.values()}) == 5
    assert metadata["input_layout"].startswith("NCHW, BGR, float32")
    assert (json.loads(metadata["mean"]), json.loads(metadata["std"])) == (list(MEAN), list(STD))
    model, description = load_network(NAME, weights)
    assert (description.network, description.input_hw, list(description.classes)) == (NAME, HW, CLASSES)
    image = torch.randn(2, 3, *HW)
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"input": image.numpy()})[0], model(image), atol=1e-4)


IN_FLOAT = {"add": 1, "batch_norm": 1}


def test_the_run_and_the_file_say_what_stays_in_float(qat_results, qat, folder, weights, capsys):
    told = "in float: 1 add, 1 batch_norm (last)"
    metadata = read_graph(folder / "qat" / "onnx_models" / "NETNetwork_QAT_INT8_final.onnx").metadata_props
    assert json.loads({each.key: each.value for each in metadata}["in_float"]) == IN_FLOAT
    assert told in qat_results["notes"]
    arguments = ["-n", NAME, "-p", weights, "-o", "told.onnx", "--int8"]
    script("convert_pytorch_to_onnx", *arguments, "--calibration_data", "data/Town/Town/images")
    assert told in capsys.readouterr().err
    start = ["-e", 1, "--samples_per_epoch", 4, "--batch_size", 4, "--num_calibration_samples", 4]
    script("quantize_model_sceneseg", "-n", NAME, "-fp32", weights, "-s", "told", "-r", "data", *DATA, *start)
    assert told in capsys.readouterr().err


REFUSED = f"""
from torch import nn

from models import Network


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.classify = nn.Conv2d(3, 5, 1)


class Deciding(Net):
    def forward(self, image):
        logits = self.classify(image)
        if logits.mean() > 0:
            logits = 2 * logits
        return logits


class Writing(Net):
    def forward(self, image):
        logits = self.classify(image)
        logits[:, :2] *= 3
        return logits + 1


DECIDING, WRITING = (Network(build, (3, *{HW}), classes={tuple(CLASSES)}) for build in (Deciding, Writing))
"""


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("DECIDING", "if logits.mean() > 0:", "torch.export cannot follow the network: "),
        ("WRITING", "logits[:, :2] *= 3", "a part of a tensor is written to"),
    ],
)
def test_a_graph_that_is_refused_is_told_with_the_line_of_the_users_code(name, line, said, folder, capsys):
    (folder / "refused.py").write_text(REFUSED)
    importlib.invalidate_caches()
    own = f"refused:{name}"
    torch.save({"classify.weight": torch.ones(5, 3, 1, 1), "classify.bias": torch.ones(5)}, "refused.pth")
    number = REFUSED.splitlines().index(f"{' ' * 8}{line}") + 1
    place = f"({folder / 'refused.py'}:{number}: {line}); write that line with operators on whole tensors"
    convert, quantize = map(importlib.import_module, ("convert_pytorch_to_onnx", "quantize_model_sceneseg"))
    int8 = ["--int8", "--calibration_data", "data/Town/Town/images"]
    flags = ["-n", own, "-p", "refused.pth", "-o", "refused.onnx"]
    assert all(each in refusal(convert, [*flags, *int8], capsys) for each in (said, place))
    if name == "DECIDING":  # what is written to a part has a form in FP32
        assert place in refusal(convert, flags, capsys)
    training = ["-n", own, "-fp32", "refused.pth", "-s", "refused", "-r", "data", *DATA]
    assert place in refusal(quantize, training, capsys)


def test_the_int8_file_is_int8(int8_onnx, fp32_onnx):
    assert stored_precision(read_graph(int8_onnx)) == "int8"
    image = np.random.default_rng(0).normal(size=(1, 3, *HW)).astype(np.float32)
    fp32, int8 = (ort.InferenceSession(path).run(None, {"input": image})[0] for path in (fp32_onnx, int8_onnx))
    assert 0 < np.abs(fp32 - int8).max() < 0.2 * np.ptp(fp32)


def test_a_trace_runs_without_the_module(folder, weights):
    script("trace_pytorch_model", "-n", NAME, "-p", weights, "-o", "net.pt", "--input_hw", "40,64")
    code = (
        "import sys, torch; print(torch.jit.load('net.pt')(torch.zeros(1, 3, 40, 64)).shape, 'tiny_net' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert process.stdout == "torch.Size([1, 5, 40, 64]) False\n", process.stderr


def test_quantization_aware_training_scores_the_classes_that_labels_name(qat):
    description = read_checkpoint(qat).description
    assert (description.network, description.kind, description.input_hw) == (NAME, "qat", HW)
    assert list(description.classes) == CLASSES
    assert list(description.metrics["together"]["iou"]) == ["sky", "road", "car"]
    assert description.metrics["together"]["images"] == 2
    (moment,) = json.loads((qat.parent / "history.json").read_text())
    assert (moment["step"], moment["loss"] > 0) == (2, True)


def test_a_qat_checkpoint_becomes_an_int8_file_with_its_report(folder, qat_results):
    path = folder / "qat" / "onnx_models" / "NETNetwork_QAT_INT8_final.onnx"
    assert stored_precision(read_graph(path)) == "int8"
    assert list(qat_results["classes"]) == CLASSES
    model = qat_results["models"]["ONNX INT8"]
    assert model["overall"]["iou"] == pytest.approx(scores_by_hand(path, folder), abs=1e-9)
    assert np.shape(model["overall"]["confusion"]) == (3, 4)  # the last column: taken for a tree or a sign
    assert qat_results["sensitivity"]["images"] == 1
    assert {"first", "second", "classify"} == {block["modules"][0] for block in qat_results["sensitivity"]["blocks"]}


def test_the_benchmark_scores_each_file_as_a_walk_by_hand_does(folder, results, fp32_onnx, int8_onnx):
    models = results["models"]
    assert list(models) == ["PyTorch", "ONNX FP32", "ONNX INT8"]
    for label, path in (("PyTorch", fp32_onnx), ("ONNX FP32", fp32_onnx), ("ONNX INT8", int8_onnx)):
        expected = scores_by_hand(path, folder)
        tolerance = 2e-3 if label == "PyTorch" else 1e-9  # a pixel on the edge of two classes
        assert models[label]["overall"]["iou"] == pytest.approx(expected, abs=tolerance)
        assert models[label]["overall"]["miou"] == pytest.approx(np.mean(list(expected.values())), abs=tolerance)
        assert models[label]["input_hw"] == list(HW)
    (page,) = (folder / "results").rglob("report.html")
    assert all(name in page.read_text() for name in CLASSES)
    assert len(list(page.parent.rglob("*.png"))) == 2 * 3
    assert "iou_car" in (page.parent / "models.csv").read_text().splitlines()[0]


def test_a_look_shows_all_classes_in_their_colours(folder, fp32_onnx):
    image = "data/Town/Town/images/09.png"
    script(
        "benchmark_onnx_models",
        "-n",
        NAME,
        "--fp32_model_path",
        fp32_onnx,
        "--show",
        image,
        "--output_dir_base",
        "look",
    )
    (path,) = (folder / "look").rglob("*.png")
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    session = ort.InferenceSession(fp32_onnx)
    palette = json.loads(session.get_modelmeta().custom_metadata_map["palette"])
    scale = -(-240 // FILE_HW[1])
    assert picture.shape[1] == 2 * scale * FILE_HW[1] + GAP
    legend = {tuple(colour) for colour in picture[BAR + scale * FILE_HW[0] :].reshape(-1, 3).tolist()}
    assert legend >= {tuple(colour) for colour in palette.values()}


def test_the_module_is_found_on_the_python_path(folder, weights, tmp_path):
    command = [sys.executable, ROOT / "trace_pytorch_model.py", "-n", NAME, "-p", weights, "-o", tmp_path / "net.pt"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    process = subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "net.pt").exists()


def test_what_does_not_fit_together_is_one_line(folder, weights, fp32_onnx, qat, capsys):
    benchmark, qat_benchmark = (importlib.import_module(f"benchmark_{name}") for name in ("onnx_models", "qat_model"))
    where = ["--dataset_root", "data", *DATA]
    line = refusal(benchmark, ["--fp32_model_path", fp32_onnx, *where], capsys)  # without -n
    assert "labels.json: class 'sky' is none of the network's: Background, Foreground, Road" in line
    line = refusal(benchmark, ["--pytorch_model_path", weights, *where], capsys)
    assert "weights.pth: not a checkpoint of SceneSeg" in line
    line = refusal(qat_benchmark, ["--qat_checkpoint_path", qat, *where], capsys)
    assert f"a checkpoint of {NAME}, not of SceneSeg; name it with -n {NAME}" in line
    (folder / "other.json").write_text(json.dumps({"values": {"0": "sky"}}))
    line = refusal(benchmark, ["-n", NAME, "--fp32_model_path", fp32_onnx, *where, "--labels", "other.json"], capsys)
    assert "--labels other.json: data/Town/Town/labels.json says otherwise" in line
    line = refusal(benchmark, ["-n", "tiny_net:NETT", "--fp32_model_path", fp32_onnx, *where], capsys)
    assert "tiny_net:NETT: no such attribute" in line and "it has NET" in line
    line = refusal(benchmark, ["-n", "no_net:NET", "--fp32_model_path", fp32_onnx, *where], capsys)
    assert f"no_net:NET: no module 'no_net' in {folder} or on PYTHONPATH" in line
