"""Networks with weights, trained in INT8 or of the family, scored by the scripts against labels of every task."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import benchmark_onnx_models as benchmark_onnx
import benchmark_qat_model as benchmark_qat
import quantize_model_sceneseg as quantize
from common.data.labelled_shots import find_labelled_shots, labelled_source
from common.networks.checkpoints import Description, published_state, save_checkpoint
from common.networks.image_inputs import image_inputs
from common.networks.registry import build_network
from models.family import NETWORKS
from tests.command_lines import call, refusal
from tests.labelled import iou_of, write_labels, write_small_drive
from tests.own_folder import own_folder

# ---- trained networks ------------------------------------------------------------------------------------------------

TRAINED = """
from torch import nn

from models import Network


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        first = (nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(*first, nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.ConvTranspose2d(8, {channels}, 2, 2))

    def forward(self, image):
        return self.body(image)


NET = Network(Net, (3, 32, 64), task="{task}", size_multiple=2)
"""


def scored(results):
    """Model -> scores, of a results.json."""
    return {label: one["scores"] for label, one in json.loads(results.read_text())["models"].items()}


def test_a_trained_network_is_scored_beside_fp32(tmp_path, capsys):
    with own_folder(tmp_path, "trained_depth", TRAINED.format(task="depth", channels=1)):
        name = "trained_depth:NET"
        write_small_drive(Path("data/Town/Town/images"), 60, (32, 64), seed=2)
        write_labels(Path("data/Town/Town"), "depth", 60, (32, 64), seed=2)
        flags = ["-fp32", "weights.pth", "--images", "data/Town/Town/images", "-e", 1, "--samples_per_epoch", 16]
        call(quantize, ["-n", name, *flags, "-s", "qat", "--workers", 0, "--num_calibration_samples", 8])
        checkpoint = ["--qat_checkpoint_path", "qat/qat_model_final_calibrated.pth", "--num_calibration_samples", 8]
        data = ["--dataset_root", "data", "--datasets", "Town", "--workers", 0, "--warmup_runs", 0]
        Path("weights.pth").rename("moved.pth")
        told = refusal(benchmark_qat, ["-n", name, *checkpoint, *data], capsys)
        assert "weights.pth: the FP32 weights of the training are not there" in told
        beside = ["--fp32_model", "moved.pth", "--compare_ptq", "moved.pth", "--pte", "--max_score_loss", "abs_rel=0.1"]
        call(benchmark_qat, ["-n", name, *checkpoint, *data, *beside])
        document, found = (
            read(Path("qat/onnx_models/results.json")) for read in (lambda path: json.loads(path.read_text()), scored)
        )
        assert [image["image"] for image in document["images"]] == [f"{index:03}.png" for index in range(9, 60, 10)]
        assert list(found) == ["ONNX FP32", "ONNX INT8 PTQ", "ONNX INT8", "ExecuTorch INT8"]
        fp32, *quantized = (scores["abs_rel"]["value"] for scores in found.values())
        assert all(0 < abs(each - fp32) < 0.1 for each in quantized)
        assert document["decision"]["result"] == "passed"
        names = ("NETNetwork_FP32.onnx", "NETNetwork_QAT_INT8_final.onnx")
        models = [
            word
            for label, file in zip("AB", names, strict=True)
            for word in ("--model", f"{label}=qat/onnx_models/{file}")
        ]
        call(benchmark_onnx, ["-n", name, *models, *data, "--output_dir_base", "again"])
        (results,) = Path("again").glob("*/results.json")
        assert list(scored(results).values()) == [found["ONNX FP32"], found["ONNX INT8"]]


# ---- the family ------------------------------------------------------------------------------------------------------

FAMILY = {  # network -> task, width, input size
    "DomainSeg": ("segmentation", 1 / 32, (32, 64)),
    "Scene3D": ("depth", 1 / 32, (32, 64)),
    "EgoLanes": ("lanes", 1 / 16, (32, 64)),
    "Scene3DLite": ("depth", 1, (32, 64)),
    "EgoLanesLite": ("lanes", 1, (32, 64)),
    "AutoSteer": ("steering", 1, (80, 160)),
    "AutoSpeed": ("detection", 1, (640, 640)),
}


def write_weights(path, name, width, input_hw):
    """Random weights of a network of the family, in eval mode what they are in training."""
    torch.manual_seed(0)
    row = NETWORKS[name]
    model = build_network(name, row, width).eval()
    save_checkpoint(Path(path), published_state(name, model), Description(name, "fp32", width, input_hw, row.classes))
    return model


@pytest.mark.parametrize("name", FAMILY)
def test_a_network_of_the_family_is_scored(name, tmp_path, monkeypatch):
    task, width, input_hw = FAMILY[name]
    monkeypatch.chdir(tmp_path)
    model = write_weights("weights.pth", name, width, input_hw)
    dataset = tmp_path / "data" / "Town" / "Town"
    write_small_drive(dataset / "images", 10, (24, 40))
    write_labels(dataset, task, 10, (24, 40))
    flags = ["--dataset_root", "data", "--datasets", "Town", "--workers", 0, "--warmup_runs", 0]
    maker = None
    if name == "AutoSteer":
        maker = tmp_path / "lanes.pth"
        write_weights(maker, "EgoLanes", 1 / 16, (320, 640))
        told = ["-n", name, "--pytorch_model_path", "weights.pth", *flags]
        with pytest.raises(SystemExit):
            call(benchmark_onnx, told)
        flags += ["--egolanes_checkpoint", maker]
    call(benchmark_onnx, ["-n", name, "--pytorch_model_path", "weights.pth", *flags, "--output_dir_base", "out"])
    (results,) = Path("out").glob("*/results.json")
    found = scored(results)["PyTorch"]
    row = NETWORKS[name]
    (shot,) = find_labelled_shots(labelled_source(name, row, tmp_path / "data", names=["Town"]), row, "val")
    inputs = image_inputs(name, row, input_hw, torch.device("cpu"), maker)
    with torch.no_grad():
        outputs = model(inputs(inputs.shots.to_tensor(inputs.shots.load(shot))[None]))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if task == "steering":
        rows = dict(line.split(",") for line in (dataset / "steering.csv").read_text().split()[1:])
        errors = [abs(output.argmax().item() - 30 - float(rows[f"00{8 + i}"])) for i, output in enumerate(outputs)]
        assert [found[key]["value"] for key in ("mae_degrees_of_previous", "mae_degrees")] == pytest.approx(errors)
    elif task == "depth":
        truth = cv2.resize(np.load(dataset / "gt_depth" / "009.npy"), (64, 32), interpolation=cv2.INTER_NEAREST_EXACT)
        said = outputs[0].numpy().ravel()
        design = np.stack([said, np.ones_like(said)], axis=1).astype(np.float64)
        depth = design @ np.linalg.lstsq(design, truth.ravel(), rcond=None)[0]
        assert found["abs_rel"]["value"] == pytest.approx(np.mean(abs(depth / truth.ravel() - 1)), abs=1e-4)
    elif task in ("lanes", "segmentation"):
        size = tuple(outputs[0].shape[:1:-1])
        stored = cv2.imread(str(next((dataset / PLACE[task]).glob("009*"))), cv2.IMREAD_UNCHANGED)
        stored = cv2.resize(stored, size, interpolation=cv2.INTER_NEAREST_EXACT)
        there = [(stored & bit) > 0 for bit in ((1, 2, 4) if task == "lanes" else (255,))]
        each = [
            iou_of(said > 0, mask) if mask.any() else None
            for said, mask in zip(outputs[0][0].numpy(), there, strict=True)
        ]
        assert [found[key]["value"] for key in list(found)[task == "lanes" :]] == pytest.approx(each)
    else:
        assert 0 <= found["map_50"]["value"] < 0.5


PLACE = {"segmentation": "gt_masks", "lanes": "gt_lanes"}
