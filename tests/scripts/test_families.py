"""Networks of torchvision and segmentation-models-pytorch, as they are, from random weights through the scripts."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from common.runtimes.onnx_files import read_graph, stored_precision
from tests.command_lines import call
from tests.town import CLASSES, DATA, write_town

HW = (64, 96)
TORCHVISION, SMP = "torchvision.models.segmentation", "segmentation_models_pytorch"
CALLS = {
    "lraspp": (TORCHVISION, "lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)"),
    "deeplabv3": (TORCHVISION, "deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)"),
    "unet": (SMP, "Unet('resnet18', encoder_weights=None, classes=5)"),
    "fpn": (SMP, "FPN('mobilenet_v2', encoder_weights=None, classes=5)"),
}
MODULE = """
import {library}

from models import Network


def build():
    return {library}.{call}


NET = Network(build, {shape}, size_multiple=32, classes={classes})
"""


def script(name, *arguments):
    call(importlib.import_module(name), arguments)


@pytest.mark.parametrize(
    ("name", "to_the_file"), [("lraspp", False), *(pytest.param(name, True, marks=pytest.mark.slow) for name in CALLS)]
)
def test_a_network_of_a_library_goes_through_the_scripts(name, to_the_file, tmp_path, monkeypatch, capsys):
    """Converted in float and without training, and two steps of training, which the slow ones take to the file."""
    library, made = CALLS[name]
    if importlib.util.find_spec(library.partition(".")[0]) is None:
        pytest.skip(
            f"needs {library}, which the toolkit itself does not: pip install segmentation-models-pytorch==0.6.0"
        )
    source = MODULE.format(library=library, call=made, shape=(3, *HW), classes=tuple(CLASSES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path(f"{name}_net.py").write_text(source)
    own, weights = f"{name}_net:NET", "weights.pth"
    write_town(Path("data"))
    sys.path.insert(0, str(tmp_path))
    torch.manual_seed(0)
    torch.save(importlib.import_module(f"{name}_net").build().state_dict(), weights)
    script("convert_pytorch_to_onnx", "-n", own, "-p", weights, "-o", "fp32.onnx")
    calibration = ["--calibration_data", "data/Town/Town/images", "--num_calibration_samples", 4]
    script("convert_pytorch_to_onnx", "-n", own, "-p", weights, "-o", "int8.onnx", "--int8", *calibration)
    assert stored_precision(read_graph(Path("int8.onnx"))) == "int8"
    steps = ["-e", 1, "--samples_per_epoch", 8, "--batch_size", 4, "--num_calibration_samples", 4]
    script("quantize_model_sceneseg", "-n", own, "-fp32", weights, "-s", "qat", "-r", "data", *DATA, *steps)
    said = capsys.readouterr()
    assert "output: ONNX Runtime against PyTorch FP32" in said.out
    assert "in float: " in said.err
    assert "together" in said.out and Path("qat/qat_model_final_calibrated.pth").exists()
    if to_the_file:
        checkpoint = ["--qat_checkpoint_path", "qat/qat_model_final_calibrated.pth", "--num_calibration_samples", 0]
        script("benchmark_qat_model", "-n", own, *checkpoint, "--dataset_root", "data", *DATA, "--warmup_runs", 0)
        assert list(json.loads(Path("qat/onnx_models/results.json").read_text())["classes"]) == CLASSES
