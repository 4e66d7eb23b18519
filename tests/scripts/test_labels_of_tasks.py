"""Benchmarks against labels of a foreground, lanes, depths, angles and objects, by the scripts; scores by slow oracles.

The networks say what a pixel holds, so that the right answer is known: FP32 is right, or wrong by what a test adds.
"""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import benchmark_onnx_models as benchmark_onnx
import benchmark_qat_model as benchmark_qat
import convert_pytorch_to_onnx as convert
import quantize_model_sceneseg as quantize
from tests.command_lines import call, refusal
from tests.labelled import iou_of
from tests.own_folder import own_folder
from tests.report.test_page import Figures, found

HW = (32, 64)
NETS = """
import torch
from torch import nn

from models import Network

ROW = dict(input_shape=(3, 32, 64), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Pixels(nn.Module):
    def __init__(self, count, bias=-0.5):
        super().__init__()
        self.mix = nn.Conv2d(3, count, 1)
        self.mix.weight.data = torch.eye(3)[:count, :, None, None] if count > 1 else torch.ones(1, 3, 1, 1) / 3
        self.mix.bias.data.fill_(bias)

    def forward(self, image):
        return self.mix(image)


class Net(Pixels):
    def __init__(self):
        super().__init__(3)


class Turn(nn.Module):  # bright images to the right, of 61 bins
    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(1))

    def said(self, image):
        angle = 60 * image.mean(dim=(1, 2, 3)) - 30 + self.offset
        return -(torch.arange(-30.0, 31.0)[None] - angle[:, None]).square()

    def forward(self, previous, current):
        return self.said(previous), self.said(current)


class Boxes(nn.Module):  # always the same three objects
    def __init__(self):
        super().__init__()
        cells = [[20.0, 32, 20, 20, 0.9, 0.1], [44, 32, 16, 20, 0.2, 0.8], [50, 20, 8, 8, 0.7, 0.1]]
        self.cells = nn.Parameter(torch.tensor(cells).T[None])

    def forward(self, image):
        return self.cells + 0 * image.mean(dim=(1, 2, 3))[:, None, None]


LANES = Network(Net, **ROW, task="lanes", classes=("left", "right", "rest"))
DEPTH = Network(lambda: Pixels(1, 0.0), **ROW, task="depth")
FOREGROUND = Network(lambda: Pixels(1), **ROW)
STEERING = Network(
    Turn, **ROW, task="steering", inputs={"a": "before", "b": "now"}, outputs={"previous": "bins", "current": "bins"}
)
OBJECTS = Network(Boxes, (3, 64, 64), task="detection", classes=("car", "bike"), mean=ROW["mean"], std=ROW["std"])
DRIVING = Network(lambda: Pixels(1), **ROW, task="driving")
"""
PLACES = {"LANES": "gt_lanes", "DEPTH": "gt_depth", "FOREGROUND": "gt_masks", "OBJECTS": "gt_boxes"}
TOWN, COUNTRY = 60, 20  # images, of which every tenth is scored


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with own_folder(tmp_path_factory.mktemp("own"), "nets", NETS) as path:
        import nets

        for dataset, count, seed in (("Town", TOWN, 0), ("Country", COUNTRY, 1)):
            write_dataset(path / "data" / dataset / dataset, count, seed)
        for name in ("LANES", "DEPTH", "FOREGROUND", "STEERING", "OBJECTS"):
            state = getattr(nets, name).build().state_dict()
            torch.save(state, f"{name}.pth")
            torch.save(worse(name, state), f"{name}_worse.pth")
        yield path


def worse(name, state):
    """Weights of a network that is wrong in a known way."""
    state = {key: value.clone() for key, value in state.items()}
    if name == "DEPTH":
        state["mix.weight"] = torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1)  # red alone
    elif name == "STEERING":
        state["offset"] += 2.5
    elif name == "OBJECTS":
        state["cells"][0, 0, 1] += 40  # the bike is not found
    else:
        state["mix.bias"] -= 0.2
    return state


def write_dataset(folder, count, seed):
    """Images of HW with the labels of all tasks, which follow from their pixels."""
    rng = np.random.default_rng(seed)
    for place in ("images", *PLACES.values()):
        (folder / place).mkdir(parents=True)
    angles = []
    for index in range(count):
        coarse = rng.integers(0, 256, (4, 8, 3), np.uint8)
        rgb = cv2.resize(coarse, HW[::-1], interpolation=cv2.INTER_NEAREST)
        name = f"{index:03}"
        cv2.imwrite(str(folder / "images" / f"{name}.png"), rgb[..., ::-1])
        shares = rgb.astype(np.float64) / 255
        bits = ((shares > 0.5) * (1, 2, 4)).sum(axis=2).astype(np.uint8)
        cv2.imwrite(str(folder / "gt_lanes" / f"{name}.png"), bits)
        cv2.imwrite(str(folder / "gt_masks" / f"{name}.png"), ((shares.mean(axis=2) > 0.5) * 255).astype(np.uint8))
        depth = 10 + 40 * shares.mean(axis=2)
        depth[0] = 0  # not known
        np.save(folder / "gt_depth" / f"{name}.npy", depth.astype(np.float32))
        angles.append(f"{name},{round(60 * shares.mean() - 30)}\n")
        # in an image of 32x64, which the letterbox puts 16 pixels down: boxes 10..30 x 22..42 and 36..52 x 22..42
        lines = ["0 0.3125 0.5 0.3125 0.625\n", "1 0.6875 0.5 0.25 0.625\n"][: 1 + index % 2]
        (folder / "gt_boxes" / f"{name}.txt").write_text("".join(lines))
    (folder / "steering.csv").write_text("frame,degrees\n" + "".join(angles))


def rgbs(folder, dataset):
    """The scored images of a dataset, float64 of 0..1."""
    paths = sorted((folder / "data" / dataset / dataset / "images").iterdir())[9::10]
    return [cv2.imread(str(path))[..., ::-1].astype(np.float64) / 255 for path in paths]


def expected_lanes(folder, bias):
    images = np.stack([rgb for dataset in ("Country", "Town") for rgb in rgbs(folder, dataset)])
    each = [iou_of(images[..., k] > bias, images[..., k] > 0.5) for k in range(3)]
    return {"miou": np.mean(each), "iou_of_left": each[0], "iou_of_right": each[1], "iou_of_rest": each[2]}


def expected_foreground(folder, bias):
    images = np.stack([rgb.mean(axis=2) for dataset in ("Country", "Town") for rgb in rgbs(folder, dataset)])
    return {"iou": iou_of(images > bias, images > 0.5)}


def expected_depth(folder, red):
    """By NumPy's least squares, image by image."""
    found = []
    for rgb in [rgb for dataset in ("Country", "Town") for rgb in rgbs(folder, dataset)]:
        said = (rgb[..., 0] if red else rgb.mean(axis=2))[1:].ravel()
        truth = (10 + 40 * rgb.mean(axis=2))[1:].ravel()
        design = np.stack([said, np.ones_like(said)], axis=1)
        depth = design @ np.linalg.lstsq(design, truth, rcond=None)[0]
        ratio = np.maximum(depth / truth, truth / depth)
        found.append(
            [np.mean(abs(depth - truth) / truth), np.sqrt(np.mean((depth - truth) ** 2)), np.mean(ratio < 1.25)]
        )
    return dict(zip(("abs_rel", "rmse", "delta_1_25"), np.mean(found, axis=0), strict=True))


def expected_steering(folder, offset):
    errors = {"mae_degrees": [], "mae_degrees_of_previous": []}
    for dataset in ("Country", "Town"):
        paths = sorted((folder / "data" / dataset / dataset / "images").iterdir())
        bright = [cv2.imread(str(path)).mean() / 255 for path in paths]
        error = [abs(np.clip(round(60 * mean - 30 + offset), -30, 30) - round(60 * mean - 30)) for mean in bright]
        errors["mae_degrees"] += error[9::10]
        errors["mae_degrees_of_previous"] += error[8::10]
    return {key: np.mean(each) for key, each in errors.items()}


EXPECTED = {
    "LANES": lambda folder, is_worse: expected_lanes(folder, 0.7 if is_worse else 0.5),
    "FOREGROUND": lambda folder, is_worse: expected_foreground(folder, 0.7 if is_worse else 0.5),
    "DEPTH": expected_depth,
    "STEERING": lambda folder, is_worse: expected_steering(folder, 2.5 if is_worse else 0.0),
    # the third car is one that is not there, of a lower score than all that are; a bike is on every second image
    "OBJECTS": lambda folder, is_worse: {
        "map_50": 0.5 if is_worse else 1.0,
        "ap_50_of_car": 1.0,
        "ap_50_of_bike": 0.0 if is_worse else 1.0,
    },
}
DATA = ["--dataset_root", "data", "--datasets", "Town", "Country", "--workers", 0, "--warmup_runs", 0]


def compared(name, *flags, out=None):
    """The document of a benchmark of both weights of a network."""
    models = ["--model", f"right={name}.pth", "--model", f"worse={name}_worse.pth"]
    call(benchmark_onnx, ["-n", f"nets:{name}", *models, *DATA, "--output_dir_base", out or f"out_{name}", *flags])
    (results,) = Path(out or f"out_{name}").glob("*/results.json")
    return json.loads(results.read_text())


@pytest.mark.parametrize("name", EXPECTED)
def test_scores_are_those_of_the_definition(name, folder, capsys):
    document = compared(name, "--save_outputs")
    for label, is_worse in (("right", False), ("worse", True)):
        values = {key: each["value"] for key, each in document["models"][label]["scores"].items()}
        assert values == pytest.approx(EXPECTED[name](folder, is_worse), abs=2e-6), label
    assert len(document["images"]) == 8
    change = document["differences"]["worse"]
    main, *_ = document["score"]["figures"]
    values = [document["models"][label]["scores"][main]["value"] for label in ("worse", "right")]
    assert change["scores"][main]["value"] == pytest.approx(values[0] - values[1])
    assert change["tag"] == "lost"
    losses = [each["loss"] for each in change["worst_scores"]]
    assert losses == sorted(losses, reverse=True) and losses[0] > 0
    if name != "OBJECTS":  # whose figure is none of means over images
        by_image = document["models"]["worse"]["per_image"]["scores"][main]
        assert by_image[change["worst_scores"][0]["index"]] == change["worst_scores"][0]["value"]
    told = capsys.readouterr().out
    title = document["score"]["figures"][main]["title"]
    assert f"{title} {values[0]:.4f} against {values[1]:.4f}, a difference of" in told
    check_report(name, document, title)


def check_report(name, document, title):
    (report,) = Path(f"out_{name}").glob("*/report.md")
    text, page = report.read_text(), (report.parent / "report.html").read_text()
    assert "## Scores against the labels" in text and title in text and "mIoU smoothed" not in text
    for part in (
        'id="scores"',
        "images that lose most",
        f">{title}<",
        "accuracy lost",
    ):
        assert part in page, part
    main = next(iter(document["score"]["figures"]))
    figures = {pointer: exact for pointer, exact, _ in Figures(page).figures}
    for pointer, exact in figures.items():
        value = found(document, pointer)
        assert exact == "" if value is None else float(exact) == value, pointer
    places = {f"/models/worse/scores/{main}/value", f"/models/right/datasets/Town/scores/{main}/low"}
    places |= {f"/differences/worse/scores/{main}/value", "/differences/worse/worst_scores/0/loss"}
    assert places <= figures.keys()
    with (report.parent / "models.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1][main]) == document["models"]["worse"]["scores"][main]["value"]
    assert float(rows[1][f"{main}_difference"]) == document["differences"]["worse"]["scores"][main]["value"]
    with (report.parent / "datasets.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["dataset"], row["images"]) for row in rows[:2]] == [
        ("right", "Country", "2"),
        ("right", "Town", "6"),
    ]
    town = document["models"]["right"]["datasets"]["Town"]["scores"][main]["value"]
    assert float(rows[1][main]) == town
    with (report.parent / "images.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 8
    maps = name in ("LANES", "DEPTH", "FOREGROUND")
    assert ("Label" in page) == maps
    assert len(list(report.parent.glob("pictures/*.png"))) == 4 * maps


# ---- the gate and earlier runs ---------------------------------------------------------------------------------------


def failed(capsys, name, *flags):
    """The decision with which a benchmark leaves with exit code 3."""
    with pytest.raises(SystemExit) as left:
        compared(name, *flags, out=f"gate_{len(flags)}_{abs(hash(flags))}")
    assert left.value.code == 3
    return capsys.readouterr().err


def test_the_gate_limits_figures_by_their_names(folder, capsys):
    told = failed(capsys, "DEPTH", "--max_score_loss", "abs_rel=0.01", "delta_1_25=1", "--worst_score", "rmse=0.5")
    assert "abs_rel" in told and "wanted --max_score_loss 0.01" in told
    assert "rmse" in told and "wanted --worst_score 0.5" in told
    assert "delta_1_25" not in told


def test_a_gate_that_is_kept_passes(folder, capsys):
    limits = ["--max_score_loss", "miou=0.9", "--worst_score", "iou_of_left=0.1", "--min_sqnr_db", "-10"]
    document = compared("LANES", *limits, "--gate_by", "bound", out="kept")
    assert [row["result"] for row in document["gate"]] == ["passed"] * 3
    assert "PASSED: nothing missed, 3 figures checked" in capsys.readouterr().out
    assert document["settings"]["max_score_loss"] == [["miou", 0.9]]
    (results,) = Path("kept").glob("*/results.json")
    again = compared("LANES", "--baseline", results, out="again")
    rows = {(row["model"], row["what"]): row["result"] for row in again["baseline"]["rows"]}
    assert rows["worse", "mean IoU"] == rows["right", "IoU of left"] == "ok"
    swapped = ["--model", "right=LANES_worse.pth", "--model", "worse=LANES.pth"]
    with pytest.raises(SystemExit):
        call(
            benchmark_onnx, ["-n", "nets:LANES", *swapped, *DATA, "--output_dir_base", "swapped", "--baseline", results]
        )
    (found,) = Path("swapped").glob("*/results.json")
    rows = {(row["model"], row["what"]): row for row in json.loads(found.read_text())["baseline"]["rows"]}
    assert rows["right", "mean IoU"]["result"] == "regression"
    assert rows["worse", "mean IoU"]["result"] == "better"
    assert rows["right", "mean IoU"]["before"] == pytest.approx(1)
    other = ["--model", "right=DEPTH.pth", *DATA, "--output_dir_base", "other"]
    with pytest.raises(SystemExit):
        call(benchmark_onnx, ["-n", "nets:DEPTH", *other, "--baseline", results])
    (found,) = Path("other").glob("*/results.json")
    rows = {(row["model"], row["what"]): row for row in json.loads(found.read_text())["baseline"]["rows"]}
    assert rows["right", "RMSE"]["why"] == "other labels"


REFUSED = {
    "a limit of class maps": (
        "LANES",
        ["--max_miou_drop", 0.1],
        "--max_miou_drop: is of maps of classes; here --max_score_loss",
    ),
    "a figure that is not there": (
        "DEPTH",
        ["--worst_score", "miou=0.5"],
        "--worst_score miou: no such figure; there are abs_rel",
    ),
    "a figure that has two limits": (
        "LANES",
        ["--worst_score", "miou=0.2", "miou=0.3"],
        "--worst_score miou: given twice",
    ),
    "a task without labels": ("DRIVING", [], "nets:DRIVING: there is no score for its task 'driving'"),
    "labels of masks": ("LANES", ["--labels", "labels.json"], "--labels: says what masks mean"),
    "a maker of inputs": ("DEPTH", ["--egolanes_checkpoint", "LANES.pth"], "takes images by themselves"),
    "no such dataset": ("DEPTH", ["--datasets", "Village"], "no such folder; expected ROOT/NAME/NAME/images"),
    "models of two sizes": ("LANES", ["--fp32_model_path", "small.onnx"], "outputs are compared at one input size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_scored_is_refused(case, folder, capsys):
    name, flags, message = REFUSED[case]
    if "small.onnx" in flags and not Path("small.onnx").exists():
        call(convert, ["-n", "nets:LANES", "-p", "LANES.pth", "-o", "small.onnx", "--input_hw", "16,16"])
        capsys.readouterr()
    weights = "DEPTH.pth" if name == "DRIVING" else f"{name}.pth"
    models = ["--model", f"a={weights}", "--model", f"b={weights}"]
    assert message in refusal(benchmark_onnx, ["-n", f"nets:{name}", *models, *DATA, *flags], capsys)


def test_limits_of_other_runs_are_refused(folder, capsys):
    models = ["--model", "a=LANES.pth", "--model", "b=LANES.pth", "--images", "data/Town/Town/images"]
    told = refusal(benchmark_onnx, ["-n", "nets:LANES", *models, "--max_score_loss", "miou=0.1"], capsys)
    assert "--max_score_loss: takes labels, which --images has not" in told
    models = ["--model", "a=LANES.pth", "--model", "b=LANES.pth"]
    told = refusal(
        benchmark_onnx, ["-n", "SceneSeg", *models, "--dataset_root", "data", "--worst_score", "miou=0.1"], capsys
    )
    assert "LANES.pth" in told or "--worst_score: is not of maps of classes" in told


def test_training_with_masks_takes_maps_of_classes(folder, capsys):
    told = refusal(
        quantize, ["-n", "nets:LANES", "-fp32", "LANES.pth", "-s", "no", "-r", "data", "--datasets", "Town"], capsys
    )
    assert "nets:LANES: its task is lanes, and masks of classes are for a map of them; train it on --images" in told


def test_bad_labels_are_left_out_and_named(folder, capsys):
    path = folder / "data" / "Town" / "Town" / "gt_lanes" / "019.png"
    before = path.read_bytes()
    path.write_bytes(b"no image")
    try:
        models = ["--model", "right=LANES.pth", *DATA]
        assert "019.png: not an image" in refusal(benchmark_onnx, ["-n", "nets:LANES", *models], capsys)
        call(benchmark_onnx, ["-n", "nets:LANES", *models, "--skip_bad", "--output_dir_base", "skipped"])
    finally:
        path.write_bytes(before)
    (results,) = Path("skipped").glob("*/results.json")
    document = json.loads(results.read_text())
    assert len(document["images"]) == 7 and document["skipped"][0]["path"].endswith("images/019.png")
    assert document["models"]["right"]["scores"]["miou"]["value"] == pytest.approx(1)
    assert "one model" in (results.parent / "report.md").read_text().lower()


def test_sensitivity_takes_masks_of_classes(folder, capsys):
    with pytest.raises(SystemExit) as left:
        call(benchmark_qat, ["-n", "nets:LANES", "--qat_checkpoint_path", "LANES.pth", *DATA, "--sensitivity"])
    assert left.value.code == 2
    assert "--sensitivity: takes masks of classes, nets:LANES gives no map" in capsys.readouterr().err
