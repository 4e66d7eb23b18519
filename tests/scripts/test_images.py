"""Quantization-aware training on images without masks: the FP32 network of the user teaches its INT8 twin."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from onnx import numpy_helper

import benchmark_onnx_models as benchmark_onnx
import benchmark_qat_model as benchmark_qat
import quantize_model_sceneseg as quantize
from common.networks.checkpoints import read_checkpoint
from common.runtimes.onnx_files import read_graph
from tests.command_lines import call, refusal
from tests.own_folder import TWO_MAPS, own_folder, write_drive, write_labelled

ROOT = Path(__file__).resolve().parents[2]
NAME = "two_maps:NET"
FLAGS = [
    "-n",
    NAME,
    "-fp32",
    "weights.pth",
    "--images",
    "drive",
    "more",
    "--workers",
    0,
    "--num_calibration_samples",
    8,
]
RUN = [*FLAGS, "-e", 3, "--batch_size", 4, "--samples_per_epoch", 12, "--learning_rate", 3e-5, "--threads", 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with own_folder(tmp_path_factory.mktemp("own"), "two_maps", TWO_MAPS) as path:
        write_drive(path / "drive" / "monday", 20)
        write_drive(path / "more", 11, seed=1)
        yield path


@pytest.fixture(scope="module")
def unbroken(folder):
    call(quantize, [*RUN, "-s", "unbroken", "--validation_pictures", 1, "--ema", 0.5])
    return folder / "unbroken"


def history(folder):
    return json.loads((folder / "history.json").read_text())


def test_the_outputs_come_near_to_the_fp32_networks(unbroken):
    first, *_, last = history(unbroken)
    assert "loss" not in first  # what the run started from, quantized without training
    assert last["sqnr_db"] == pytest.approx(sum(last["sqnr_db_of"].values()) / 2)
    assert last["sqnr_db_of"].keys() == {"area", "depth"}
    assert last["equal_pixels"].keys() == {"area"}
    assert max(entry["sqnr_db"] for entry in history(unbroken)) > first["sqnr_db"] + 0.4
    final = read_checkpoint(unbroken / "qat_model_final_calibrated.pth").description
    assert final.metrics.keys() == {"drive", "more", "together"}
    assert [final.metrics[name]["images"] for name in final.metrics] == [2, 1, 3]
    assert final.metrics["together"]["sqnr_db"] >= last["sqnr_db"]


def test_the_best_weights_are_those_of_the_best_sqnr(unbroken):
    best = read_checkpoint(unbroken / "qat_best.pth").description.metrics["together"]
    assert best["sqnr_db"] == max(entry["sqnr_db"] for entry in history(unbroken))


def test_a_run_that_leads_away_gives_back_what_it_started_from(folder):
    call(quantize, [*RUN, "-s", "away", "-e", 1, "--learning_rate", 0.1])
    start, end = history(folder / "away")
    assert end["sqnr_db"] < start["sqnr_db"] - 10
    final = read_checkpoint(folder / "away" / "qat_model_final_calibrated.pth")
    assert final.description.metrics["together"]["sqnr_db"] == start["sqnr_db"]
    best = read_checkpoint(folder / "away" / "qat_best.pth")
    assert all(torch.equal(value, best.state[key]) for key, value in final.state.items())


def test_pictures_of_every_map_are_drawn(unbroken):
    names = sorted(path.name for path in (unbroken / "pictures").iterdir())
    assert len(names) == 3 * 2 * 2  # moments, folders, maps
    assert names[0] == "drive_009_area_step_000003.png"


def test_a_resumed_run_ends_as_the_unbroken_one(unbroken, folder):
    (folder / "again").mkdir()
    for name in ("qat_checkpoint_epoch_0_step_3.pth", "qat_best.pth"):  # the best so far lies beside it
        shutil.copy(unbroken / name, folder / "again")
    call(quantize, [*RUN, "-s", "again", "--validation_pictures", 1, "--ema", 0.5, "--resume", "auto"])
    expected, actual = (
        read_checkpoint(path / "qat_model_final_calibrated.pth") for path in (unbroken, folder / "again")
    )
    assert all(torch.equal(value, actual.state[key]) for key, value in expected.state.items())
    assert history(folder / "again") == history(unbroken)


def test_another_run_is_not_gone_on_with(unbroken, folder, capsys):
    checkpoint = unbroken / "qat_checkpoint_epoch_0_step_3.pth"
    same = ["--ema", 0.5, "-s", "other", "--resume", checkpoint]
    other = [each for each in RUN if each != "more"]
    assert "another run: images was 28 " in refusal(quantize, [*other, *same], capsys)
    data = ["-r", "data", "--datasets", "Town"]
    write_labelled(folder / "data" / "Town" / "Town")
    labelled = [*RUN[: RUN.index("--images")], *RUN[RUN.index("more") + 1 :], *data, "--labels", "labels.json"]
    assert "this would be another run" in refusal(quantize, [*labelled, *same], capsys)
    call(quantize, [*labelled, "-s", "labelled", "-e", 1])
    periodic = next((folder / "labelled").glob("qat_checkpoint*"))
    assert "no checkpoint of a run with --images" in refusal(quantize, [*RUN, "-s", "x", "--resume", periodic], capsys)


def process(*flags, launcher=(sys.executable,)):
    command = [*launcher, ROOT / "quantize_model_sceneseg.py", *RUN, *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    return subprocess.Popen([*map(str, command)], env=environment, stderr=subprocess.PIPE, text=True)


def test_a_signal_ends_the_run_in_order_and_it_goes_on(folder):
    flags = ["-s", "stopped", "--cache_dir", "cache", "--schedule", "constant"]
    running = process(*flags, "-e", 400)
    while not (folder / "stopped" / "history.json").exists() and running.poll() is None:
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    _, notes = running.communicate(timeout=120)
    assert running.returncode == 143, notes
    assert "go on with --resume auto" in notes
    steps = len(history(folder / "stopped"))
    call(quantize, [*RUN, *flags, "-e", steps + 2, "--resume", "auto"])
    assert len(history(folder / "stopped")) == steps + 3  # with that of the start, one of an epoch that was broken off
    assert [*(folder / "cache").glob("*.pair")]


def test_two_processes_learn_what_one_does(folder):
    """Of the same images in a step; the ranges are averages of what each saw."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    running = process("-s", "two", "--augmentation", 0, launcher=launcher)
    _, notes = running.communicate(timeout=240)
    assert running.returncode == 0, notes
    call(quantize, [*RUN, "-s", "one", "--augmentation", 0])
    one, two = history(folder / "one"), history(folder / "two")
    assert [entry["images"] for entry in two] == [entry["images"] for entry in one]
    assert two[-1]["sqnr_db"] == pytest.approx(one[-1]["sqnr_db"], abs=2)


def test_a_bad_image_ends_the_run_or_is_left_out(folder, capsys):
    write_drive(folder / "bad", 12)
    (folder / "bad" / "003.png").write_bytes(b"no image")
    arguments = ["-n", NAME, "-fp32", "weights.pth", "--images", "bad", "--workers", 0, "-e", 1, "--batch_size", 8]
    assert "003.png" in refusal(quantize, [*arguments, "-s", "bad_run"], capsys)
    call(quantize, [*arguments, "-s", "bad_run", "--skip_bad"])
    (skipped,) = json.loads((folder / "bad_run" / "skipped.json").read_text())
    assert skipped["path"].endswith("003.png")


@pytest.fixture(scope="module")
def benchmarked(unbroken, folder):
    """The INT8 file of the trained network, beside FP32 and INT8 without training, on the images that were held out."""
    checkpoint = ["--qat_checkpoint_path", unbroken / "qat_model_final_calibrated.pth"]
    flags = ["--timed_runs", 2, "--warmup_runs", 0, "--compare_ptq", "weights.pth"]
    call(benchmark_qat, ["-n", NAME, *checkpoint, "--images", "drive", "more", "--workers", 0, *flags])
    return json.loads((unbroken / "onnx_models" / "results.json").read_text())


def test_the_benchmark_without_masks_says_how_near_each_output_comes(benchmarked, unbroken):
    assert list(benchmarked["models"]) == ["ONNX FP32", "ONNX INT8 PTQ", "ONNX INT8"]
    assert [image["image"] for image in benchmarked["images"]] == ["009.png", "019.png", "009.png"]
    for label in ("ONNX INT8 PTQ", "ONNX INT8"):
        outputs = benchmarked["models"][label]["outputs"]
        assert outputs.keys() == {"area", "depth"}
        assert 20 < outputs["area"]["sqnr_db"] < 60
        assert 0.9 < outputs["area"]["equal_pixels"] <= 1
        assert outputs["depth"]["equal_pixels"] is None
        assert 0 < outputs["depth"]["largest_difference"] < outputs["depth"]["output_range"]
    assert benchmarked["models"]["ONNX FP32"]["outputs"]["area"]["sqnr_db"] == 200
    report = (unbroken / "onnx_models" / "report.md").read_text()
    assert "mIoU" not in report
    assert "| ONNX INT8 " in report
    page = (unbroken / "onnx_models" / "report.html").read_text()
    assert page.count("<img") == 3 * (1 + 2 * (3 + 2))  # images: original, and by map three models and two differences
    assert "mIoU" not in page


def test_the_file_has_the_ranges_that_were_found_before_the_first_step(benchmarked, unbroken):
    """The weights have settled in them."""
    first = min(unbroken.glob("qat_checkpoint_*.pth"))
    states = [read_checkpoint(path).state for path in (first, unbroken / "qat_model_final_calibrated.pth")]
    before, after = ({key: state[key] for key in state if key.endswith(".scale")} for state in states)
    held = [key for key in before if torch.equal(before[key], after[key])]
    assert len(held) >= 8  # of activations
    model = read_graph(unbroken / "onnx_models" / "NETNetwork_QAT_INT8_final.onnx")
    stored = {each.name: numpy_helper.to_array(each).tolist() for each in model.graph.initializer}
    scales = {stored[node.input[1]] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert len(scales) == 5  # the image, two convolutions, two outputs
    assert scales <= {before[key].item() for key in held}


def test_trained_outputs_are_nearer_than_those_quantized_without_training(benchmarked):
    trained, untrained = (benchmarked["models"][label]["outputs"] for label in ("ONNX INT8", "ONNX INT8 PTQ"))
    gained = [trained[name]["sqnr_db"] - untrained[name]["sqnr_db"] for name in ("area", "depth")]
    assert min(gained) > -0.3 and sum(gained) > 0.2, gained


def test_models_are_compared_on_all_images_of_a_folder(benchmarked, unbroken, folder, capsys):
    models = [
        "--pytorch_model_path",
        "weights.pth",
        "--int8_model_path",
        unbroken / "onnx_models/NETNetwork_QAT_INT8_final.onnx",
    ]
    flags = [
        "-n",
        NAME,
        *models,
        "--images",
        "more",
        "--output_dir_base",
        "compared",
        "--warmup_runs",
        0,
        "--workers",
        0,
    ]
    call(benchmark_onnx, [*flags, "--save_outputs", "--min_sqnr_db", 20, "--min_equal_pixels", 0.9])
    told = capsys.readouterr().out
    assert "PASSED: nothing missed, 3 figures checked" in told
    (results,) = (folder / "compared").glob("*/results.json")
    document = json.loads(results.read_text())
    assert len(document["images"]) == 11
    assert len([*results.parent.glob("pictures/*.png")]) == 2 * 2  # images, maps
    equal = document["models"]["ONNX INT8"]["per_image"]["equal_pixels"]["area"]
    assert sum(equal) / 11 == pytest.approx(document["models"]["ONNX INT8"]["outputs"]["area"]["equal_pixels"])
    assert (results.parent / "images.csv").read_text().count("\n") == 1 + 2 * 11
    with pytest.raises(SystemExit) as left:
        call(benchmark_onnx, [*flags, "--min_sqnr_db", 99, "--baseline", results])
    assert left.value.code == 3
    told = capsys.readouterr()
    assert "FAILED: ONNX INT8: area " in told.err
    assert "| SQNR of area, dB " in told.out


REFUSED_BENCHMARKS = {
    "masks' limit": (["--max_miou_drop", 0.1], "--max_miou_drop: takes masks, which --images has not"),
    "labels": (["--labels", "labels.json"], "--labels: not allowed with argument --images"),
    "a maker of inputs": (["--egolanes_checkpoint", "weights.pth"], "takes images by themselves"),
    "sizes": (["--pytorch_target_hw", "64,64"], "outputs are compared at one input size"),
}


@pytest.mark.parametrize("case", REFUSED_BENCHMARKS)
def test_what_a_benchmark_without_masks_cannot_do(case, benchmarked, unbroken, capsys):
    flags, told = REFUSED_BENCHMARKS[case]
    models = ["--pytorch_model_path", "weights.pth", "--fp32_model_path", unbroken / "onnx_models/NETNetwork_FP32.onnx"]
    with pytest.raises(SystemExit) as left:
        call(benchmark_onnx, ["-n", NAME, *models, "--images", "more", "--workers", 0, *flags])
    assert left.value.code in (1, 2)
    assert told in capsys.readouterr().err


def test_the_limits_of_agreement_take_no_masks(benchmarked, unbroken, capsys):
    models = ["--pytorch_model_path", "weights.pth", "--fp32_model_path", unbroken / "onnx_models/NETNetwork_FP32.onnx"]
    flags = ["-n", NAME, *models, "--dataset_root", "data", "--min_sqnr_db", 20]
    assert "--min_sqnr_db: compares outputs on --images" in refusal(benchmark_onnx, flags, capsys)


def test_fp32_weights_that_are_gone_are_asked_for(unbroken, folder, capsys):
    checkpoint = ["--qat_checkpoint_path", unbroken / "qat_best.pth"]
    (folder / "weights.pth").rename(folder / "moved.pth")
    try:
        told = refusal(benchmark_qat, ["-n", NAME, *checkpoint, "--images", "drive", "--workers", 0], capsys)
    finally:
        (folder / "moved.pth").rename(folder / "weights.pth")
    assert "weights.pth: the FP32 weights of the training are not there" in told
    assert "--fp32_model CKPT" in told


REFUSED = {
    "both sources": (["--root", "data"], 2, "not allowed with argument"),
    "labels": (["--labels", "labels.json"], 2, "--labels: not allowed with argument --images"),
    "datasets": (["--datasets", "Town"], 2, "--datasets: not allowed with argument --images"),
    "the labels' loss": (["--unweighted_loss"], 2, "--unweighted_loss: not allowed with argument --images"),
    "distillation beside": (["--distill", "1"], 2, "--distill: not allowed with argument --images"),
    "a maker of inputs": (["--egolanes_checkpoint", "weights.pth"], 1, "takes images by themselves"),
    "no folder": (["--images", "absent"], 1, "absent: no such folder of images"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_without_masks_is_refused(case, folder, capsys):
    flags, code, told = REFUSED[case]
    if code == 2:
        with pytest.raises(SystemExit) as left:
            call(quantize, [*RUN, "-s", "refused", *flags])
        assert left.value.code == 2
        assert told in capsys.readouterr().err
    else:
        assert told in refusal(quantize, [*RUN, "-s", "refused", *flags], capsys)
