"""`--auto_float` and `--keep_float` from the command line to files and reports; one layer of the network is bad."""

import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

import benchmark_qat_model as benchmark
import convert_pytorch_to_onnx as convert
import quantize_model_sceneseg as quantize
from common.networks.opening import open_network
from common.runtimes.predictors import OnnxPredictor
from tests.command_lines import call, refusal
from tests.own_folder import own_folder, write_drive

NAME = "planted:NET"
HW = (32, 64)
CLASSES = ("sky", "road", "car", "tree")
# the weights of `second` are bad for INT8: one of an input that is always 0 takes all of their codes
PLANTED = f"""
import torch
from torch import nn

from models import Network


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.third = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.last = nn.ConvTranspose2d(8, {len(CLASSES)}, 2, 2)
        for layer in (self.first[0], self.second[0], self.third[0], self.last):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.first[0].weight[7] = 0
            self.first[0].bias[7] = -1
            self.second[0].weight[:, 7] = 60

    def forward(self, image):
        return self.last(self.third(self.second(self.first(image))))


NET = Network(build=Net, input_shape=(3, *{HW}), size_multiple=2, classes={CLASSES})
"""
CONVERT = ["-n", NAME, "-p", "weights.pth", "--int8", "--calibration_data", "drive", "--num_calibration_samples", 6]
LABELLED = ["--dataset_root", "data", "--datasets", "Own", "--workers", 0]
QAT = ["-n", NAME, "--num_calibration_samples", 4, "--warmup_runs", 0, "--timed_runs", 1, "--workers", 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The network, a drive, and a dataset whose masks are what the network says in float: every loss is of INT8."""
    with own_folder(tmp_path_factory.mktemp("planted"), "planted", PLANTED) as path:
        write_drive(path / "drive", 30, size=HW)
        own = path / "data" / "Own" / "Own"
        write_drive(own / "images", 100, seed=1, size=HW)
        (own / "gt_masks").mkdir()
        source, images = open_network(NAME, path / "weights.pth", None), sorted((own / "images").iterdir())
        with torch.no_grad():
            logits = source.model(torch.cat([as_input(image, source.network) for image in images]))
            source.model.last.bias -= logits.mean(dim=(0, 2, 3))  # so that no class is rare
            classes = (logits - logits.mean(dim=(0, 2, 3), keepdim=True)).argmax(dim=1)
        torch.save(source.model.state_dict(), path / "weights.pth")
        for image, ids in zip(images, classes, strict=True):
            cv2.imwrite(str(own / "gt_masks" / image.name), ids.numpy().astype(np.uint8))
        (own / "labels.json").write_text(json.dumps({"values": {str(i): name for i, name in enumerate(CLASSES)}}))
        yield path


def as_input(path, network):
    """An image file as the network takes it."""
    rgb = cv2.imread(str(path))[..., ::-1] / 255
    return torch.from_numpy(((rgb - network.mean) / network.std).transpose(2, 0, 1)[None]).float()


@pytest.fixture(scope="module")
def checkpoint(folder):
    """A step of quantization-aware training, which leaves the layer as it is."""
    steps = ["-e", 1, "--batch_size", 4, "--samples_per_epoch", 4, "--learning_rate", 1e-6, "--workers", 0]
    flags = ["-fp32", "weights.pth", "-r", "data", "--datasets", "Own", "-s", "qat", "--num_calibration_samples", 4]
    call(quantize, ["-n", NAME, *flags, *steps])
    return folder / "qat" / "qat_model_final_calibrated.pth"


def float_weights(path):
    """How many layers of a file have weights that are no codes."""
    model = onnx.load(path)
    makers = {output: node for node in model.graph.node for output in node.output}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    return sum(node.input[1] not in makers for node in layers)


def outputs(path):
    images = torch.rand(2, 3, *HW, generator=torch.Generator().manual_seed(0))
    return OnnxPredictor(Path(path), 1)(images)


def command_in(text):
    """The words of the direct command, behind the script."""
    return shlex.split(re.search(r"^    python \w+\.py (.*)$", text, re.MULTILINE)[1])


def test_labelled_images_choose_what_stays_in_float(folder, capsys):
    call(convert, [*CONVERT, "-o", "int8.onnx", *LABELLED, "--auto_float", "--max_miou_drop", 0.2])
    told = capsys.readouterr().out
    choice = json.loads((folder / "int8.auto_float.json").read_text())["auto_float"]
    assert choice["blocks"][0]["modules"] == ["second"] and choice["modules"] == ["second"]
    assert choice["steps"][0]["figure"] > 0.2 > choice["steps"][choice["chosen"]]["figure"]
    assert choice["evaluations"] <= choice["max_evaluations"] == 40
    assert (choice["images"], choice["held_out"]["images"], choice["held_out"]["miou_fp32"]) == (5, 5, 1.0)
    assert choice["held_out"]["miou"] >= 0.8
    assert "chosen on 5 images, the 1st, 3rd, ... of each dataset, and checked on the 5 others" in told
    assert re.search(r"\| 1, chosen \| second ", told)
    assert float_weights("int8.onnx") == 1

    words = command_in(told)
    assert words[-2:] == ["--keep_float", "second"] and "--auto_float" not in words and "--dataset_root" not in words
    before = outputs("int8.onnx")
    call(convert, words[: words.index("--threads")] + words[-2:])
    assert torch.equal(outputs("int8.onnx"), before)


def test_images_without_labels_choose_too(folder, capsys):
    call(convert, [*CONVERT, "-o", "sqnr.onnx", "--auto_float", "--min_sqnr_db", 25, "--ptq", "correct_biases"])
    choice = json.loads((folder / "sqnr.auto_float.json").read_text())["auto_float"]
    assert choice["modules"] == ["second"] and choice["held_out"]["figure"] >= 25
    assert choice["held_out"]["low"] <= choice["held_out"]["figure"] <= choice["held_out"]["high"]
    assert (choice["images"], choice["held_out"]["images"]) == (9, 9)  # 30 without 6 that calibrate and 6 that judge
    assert choice["held_out"]["miou"] is None


def test_a_limit_out_of_reach_is_a_line_and_no_file(folder, capsys):
    flags = ["--auto_float", "--min_sqnr_db", 120, "--max_evaluations", 5]
    line = refusal(convert, [*CONVERT, "-o", "none.onnx", *flags], capsys)
    assert "--min_sqnr_db 120: not kept within 4 of 5 evaluations; the best found is SQNR (dB)" in line
    assert list(folder.glob("none*")) == []


def test_too_few_images_are_a_line(folder, capsys):
    flags = ["--auto_float", "--min_sqnr_db", 5, "--num_calibration_samples", 20]
    line = refusal(convert, [*CONVERT, "-o", "none.onnx", *flags], capsys)
    assert "--auto_float: 4 images leave 2 to check the choice; give 10 or more" in line


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--auto_float"], "--auto_float: takes a limit, --max_miou_drop or --min_sqnr_db"),
        (["--auto_float", "--max_miou_drop", 0.1, "--min_sqnr_db", 5, *LABELLED], "--auto_float: takes a limit"),
        (["--auto_float", "--max_miou_drop", 0.1], "--max_miou_drop: takes masks of classes (--dataset_root)"),
        (["--auto_float", "--min_sqnr_db", 5, *LABELLED], "--min_sqnr_db: is for images without labels"),
        (["--auto_float", "--min_sqnr_db", 5, "--max_evaluations", 3], "--max_evaluations: 4 are the fewest"),
        (["--auto_float", "--min_sqnr_db", 5, "--target", "executorch"], "takes .pte files"),
        (["--max_evaluations", 9], "--max_evaluations: is for --auto_float"),
        (["--min_sqnr_db", 5], "--min_sqnr_db: is for --auto_float"),
        (["--dataset_root", "data"], "--dataset_root: is for --auto_float"),
        (["--datasets", "Own"], "--datasets: is for --auto_float"),
    ],
)
def test_what_does_not_go_together_is_a_line_and_exit_code_2(folder, flags, line, capsys):
    suffix = ".pte" if "executorch" in flags else ".onnx"
    with pytest.raises(SystemExit) as exit_info:
        call(convert, [*CONVERT, "-o", f"refused{suffix}", *flags])
    assert exit_info.value.code == 2 and line in capsys.readouterr().err
    assert list(folder.glob("refused*")) == []


@pytest.mark.parametrize("flag", [["--auto_float", "--min_sqnr_db", 5], ["--keep_float", "second"]])
def test_a_float_file_has_no_such_flags(folder, flag, capsys):
    with pytest.raises(SystemExit) as exit_info:
        call(convert, ["-n", NAME, "-p", "weights.pth", "-o", "refused.onnx", *flag])
    assert exit_info.value.code == 2 and f"{flag[0]}: is for --int8" in capsys.readouterr().err


def test_a_module_that_is_not_there_is_a_line(folder, checkpoint, capsys):
    line = refusal(convert, [*CONVERT, "-o", "none.onnx", "--keep_float", "neck"], capsys)
    assert "--keep_float neck: matches no module; the network's largest are first, last, second, third" in line
    flags = ["--qat_checkpoint_path", checkpoint, *LABELLED, "--keep_float", "neck"]
    assert "--keep_float neck: matches no module" in refusal(benchmark, [*QAT, *flags], capsys)


def test_a_checkpoint_is_scored_on_images_that_did_not_choose(folder, checkpoint, capsys):
    flags = ["--qat_checkpoint_path", checkpoint, *LABELLED, "--auto_float", "--max_miou_drop", 0.2]
    call(benchmark, [*QAT, *flags, "--max_evaluations", 12, "--timed_runs", 2])
    told = capsys.readouterr().out
    results = json.loads((checkpoint.parent / "onnx_models" / "results.json").read_text())
    choice = results["auto_float"]
    assert choice["modules"] == ["second"] and choice["kept"] and choice["evaluations"] <= 12
    assert [image["image"] for image in results["images"]] == ["019.png", "039.png", "059.png", "079.png", "099.png"]
    assert choice["held_out"]["miou"] == pytest.approx(results["models"]["ONNX INT8"]["overall"]["miou"], abs=0.01)
    files = checkpoint.parent / "onnx_models"
    (int8,) = files.glob("*_QAT_INT8_final.onnx")
    assert float_weights(int8) == 1
    page = (files / "report.html").read_text()
    assert 'id="in-float"' in page and "/auto_float/steps/0/figure" in page
    assert "## In float" in (files / "report.md").read_text() and (files / "auto_float.svg").is_file()

    words, before = command_in(told), outputs(int8)
    assert words[-2:] == ["--keep_float", "second"] and "--max_miou_drop" not in words and "--dataset_root" in words
    call(benchmark, words[: words.index("--threads")] + words[-2:])
    assert torch.equal(outputs(int8), before)
    assert "auto_float" not in json.loads((files / "results.json").read_text())


def test_a_checkpoint_whose_limit_is_out_of_reach_leaves_no_file(folder, checkpoint, capsys):
    (checkpoint.parent / "onnx_models").mkdir(exist_ok=True)
    for file in (checkpoint.parent / "onnx_models").glob("*.onnx"):
        file.unlink()
    flags = ["--images", "drive", "--num_samples_per_dataset", 20, "--auto_float", "--min_sqnr_db", 120]
    line = refusal(benchmark, [*QAT, "--qat_checkpoint_path", checkpoint, *flags], capsys)
    assert "3 images leave 1 to check the choice" in line
    write_drive(folder / "long", 100, seed=3, size=HW)
    flags = ["--images", "long", "--auto_float", "--min_sqnr_db", 120, "--max_evaluations", 4]
    line = refusal(benchmark, [*QAT, "--qat_checkpoint_path", checkpoint, *flags], capsys)
    assert "--min_sqnr_db 120: not kept within" in line
    assert list((checkpoint.parent / "onnx_models").glob("*.onnx")) == []


def test_a_checkpoint_is_compared_with_fp32_where_there_are_no_labels(folder, checkpoint, capsys):
    write_drive(folder / "other", 100, seed=4, size=HW)
    flags = ["--images", "other", "--auto_float", "--min_sqnr_db", 25, "--gate_by", "bound"]
    call(benchmark, [*QAT, "--qat_checkpoint_path", checkpoint, *flags])
    results = json.loads((checkpoint.parent / "onnx_models" / "results.json").read_text())
    choice = results["auto_float"]
    assert choice["modules"] == ["second"] and choice["held_out"]["low"] >= 25
    assert len(results["images"]) == choice["held_out"]["images"] == 5
    assert 'id="in-float"' in (checkpoint.parent / "onnx_models" / "report.html").read_text()


def test_a_choice_for_a_checkpoint_takes_a_limit_of_its_images(folder, checkpoint, capsys):
    for limit in (["--min_sqnr_db", 5], []):
        with pytest.raises(SystemExit) as exit_info:
            call(benchmark, [*QAT, "--qat_checkpoint_path", checkpoint, *LABELLED, "--auto_float", *limit])
        assert exit_info.value.code == 2
