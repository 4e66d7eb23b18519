"""`--per_channel` from the training to both files: transposed convolutions fused and plain, weights of one sign."""

import importlib
import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from common.runtimes.pte import PtePredictor
from tests.command_lines import call
from tests.own_folder import own_folder
from tests.town import CLASSES, DATA, write_town

# two sizes of maps, joined by an upsampling stage of the family, which `--fuse` fuses and `--no-fuse` does not
SOURCE = f"""
from torch import nn

from models import Network
from models.blocks import UpsampleStage


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.second = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.neck = UpsampleStage(16, 12, 8, 12, 8)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, 5, 3, 1, 1)

    def forward(self, image):
        x = self.first(image)
        return self.head(self.norm(self.up(self.neck(self.second(x), x))).relu())


NET = Network(build=Net, input_shape=(3, 32, 48), size_multiple=4, classes={tuple(CLASSES)})
"""
CONVOLUTIONS = {"--fuse": 2 + 3 + 1 + 1, "--no-fuse": 2 + 5 + 1 + 1}  # a transposed one of 2x2 and 12 channels is two
FINAL = "NETNetwork_QAT_INT8_final"


def script(name, *arguments):
    call(importlib.import_module(name), arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with own_folder(tmp_path_factory.mktemp("own"), "staged_net", SOURCE) as folder:
        write_town(folder / "data")
        state = torch.load("weights.pth", weights_only=True)
        state["first.0.weight"][:4].abs_()  # of one sign, which has an affine range of its own where it may
        state["second.0.weight"][:4].abs_().neg_()
        torch.save(state, "weights.pth")
        yield folder


@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_scales_by_channel_from_training_to_both_files(form, folder):
    run, name = f"run{form}", ["-n", "staged_net:NET"]
    steps = ["-e", 1, "--samples_per_epoch", 8, "--batch_size", 4, "--num_calibration_samples", 4]
    start = ["-fp32", "weights.pth", "-s", run, "-r", "data", *DATA]
    script("quantize_model_sceneseg", *name, *start, *steps, "--per_channel", form)
    checkpoint, flags = f"{run}/qat_model_final_calibrated.pth", ["--num_calibration_samples", 4, "--warmup_runs", 0]
    script(
        "benchmark_qat_model",
        *name,
        "--qat_checkpoint_path",
        checkpoint,
        "--dataset_root",
        "data",
        *DATA,
        *flags,
        "--pte",
    )
    files = folder / run / "onnx_models"
    models = json.loads((files / "results.json").read_text())["models"]
    assert list(models) == ["ONNX INT8", "ExecuTorch INT8"]
    scores = [model["overall"]["miou"] for model in models.values()]
    assert abs(scores[0] - scores[1]) < 0.02

    values, pairs = constants_of(files / f"{FINAL}.onnx")
    scales_of_weights = [(values[pair[0]], *(values[name] for name in pair[1:])) for pair in pairs]
    assert len(scales_of_weights) == CONVOLUTIONS[form]
    for codes, scales, *zero_points in scales_of_weights:  # which are left out where they are 0
        assert scales.shape == codes.shape[:1] and not np.any(zero_points)
    assert len({scale for _, scales, *_ in scales_of_weights for scale in scales.tolist()}) > 30

    where = ["--dataset_root", "data", *DATA, "--output_dir_base", f"{run}/again", "--warmup_runs", 0]
    both = ["--int8_model_path", files / f"{FINAL}.onnx", "--pte_model_path", files / f"{FINAL}.pte"]
    script("benchmark_onnx_models", *name, *both, *where)
    (path,) = (folder / run / "again").rglob("results.json")
    again = json.loads(path.read_text())["models"]
    assert [model["overall"]["miou"] for model in again.values()] == scores
    assert [model["precision"] for model in again.values()] == ["int8", "int8"]
    assert PtePredictor(files / f"{FINAL}.pte", 1).metadata["network"] == name[1]


def constants_of(path):
    """The stored values of a file by name, and the inputs of the nodes that dequantize stored codes."""
    graph = onnx.load(path).graph
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    pairs = [node.input for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in values]
    return values, [pair for pair in pairs if np.ndim(values[pair[0]]) == 4]
