"""`--start_from ptq` from the command line to the file: with labels and without, resumed, for a target, and refused."""

import json
import shutil

import onnx
import pytest
import torch

import benchmark_qat_model as benchmark
import quantize_model_sceneseg as quantize
from common.commands import benchmark_qat
from common.networks.checkpoints import read_checkpoint
from common.runtimes.target_check import broken_rules
from common.training.settings import retraining_command
from tests.command_lines import call, refusal
from tests.own_folder import TWO_MAPS, own_folder, write_drive, write_labelled

NAME = "two_maps:NET"
STEPS = ["-n", NAME, "-fp32", "weights.pth", "-e", 2, "--batch_size", 4, "--samples_per_epoch", 4, "--workers", 0]
STEPS += ["--num_calibration_samples", 4, "--start_from", "ptq", "--threads", 1]
IMAGES = [*STEPS, "--images", "drive"]
FINAL = "qat_model_final_calibrated.pth"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with own_folder(tmp_path_factory.mktemp("own"), "two_maps", TWO_MAPS) as path:
        write_drive(path / "drive", 12)
        yield path


@pytest.fixture(scope="module")
def trained(folder):
    """Without labels, for a target whose weights are by channel."""
    call(quantize, [*IMAGES, "-s", "run", "--target", "tensorrt", "--ptq", "mse", "equalize", "correct_biases"])
    return folder / "run"


def history(folder):
    return json.loads((folder / "history.json").read_text())


def test_a_checkpoint_says_what_it_started_from(trained):
    stored = read_checkpoint(trained / FINAL).description.arguments
    assert (stored["start_from"], list(stored["ptq"])) == ("ptq", ["mse", "equalize", "correct_biases"])
    assert (stored["freeze_batch_norm"], stored["freeze_observers"]) == (0, 0)
    command = retraining_command(stored, [])
    assert "--start_from ptq --ptq mse equalize correct_biases" in command and "--freeze_observers 0" in command


def test_the_file_and_the_results_say_it_too_and_the_ranges_are_those_found(trained, monkeypatch):
    given = ["-n", NAME, "--qat_checkpoint_path", trained / FINAL, "--images", "drive", "--warmup_runs", 0]
    monkeypatch.setattr(benchmark_qat, "calibrate", lambda *_: pytest.fail("calibrated anew"))
    call(benchmark, [*given, "--workers", 0])
    model = onnx.load(next((trained / "onnx_models").glob("*QAT_INT8_final.onnx")))
    assert broken_rules(model, "tensorrt") == []
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["trained_from"]) == ["mse", "equalize", "correct_biases"]
    results = (trained / "onnx_models" / "results.json").read_text()
    assert "trained from FP32 weights corrected by mse, equalize, correct_biases" in results


def test_the_first_step_is_taken_from_corrected_weights(trained, folder):
    """Equalization is seen in a batch norm's factors, which a learning rate of nearly 0 leaves where they were."""
    call(quantize, [*IMAGES, "-s", "still", "--ptq", "equalize", "--learning_rate", 1e-12, "-e", 1])
    weights = torch.load("weights.pth", weights_only=True)
    state = read_checkpoint(folder / "still" / FINAL).state
    ratio = state["body.1.weight"] / weights["body.1.weight"]
    assert ratio.max() / ratio.min() > 1.1
    torch.testing.assert_close(state["body.1.bias"], weights["body.1.bias"] * ratio)


def test_a_resumed_run_does_it_once_and_ends_as_the_unbroken_one(trained, folder, capsys):
    (folder / "again").mkdir()
    for name in ("qat_checkpoint_epoch_0_step_1.pth", "qat_best.pth"):
        shutil.copy(trained / name, folder / "again")
    same = [*IMAGES, "--target", "tensorrt", "--resume", "auto", "-s", "again"]
    methods = ["--ptq", "mse", "equalize", "correct_biases"]
    call(quantize, [*same, *methods])
    assert "correcting the FP32 weights" not in capsys.readouterr().err
    expected, actual = (read_checkpoint(path / FINAL).state for path in (trained, folder / "again"))
    assert all(torch.equal(value, actual[key]) for key, value in expected.items())
    assert "ptq was ('mse', 'equalize', 'correct_biases'), is ('mse',)" in refusal(
        quantize, [*same, "--ptq", "mse"], capsys
    )
    plain = [each for each in same if each not in ("--start_from", "ptq")]
    assert "start_from was ptq, is fp32" in refusal(quantize, plain, capsys)


def test_with_labels(folder, capsys):
    """The start is scored before the first step, and the ranges that were found are those at the end."""
    write_labelled(folder / "data" / "Town" / "Town")
    labelled = [*STEPS, "-r", "data", "--datasets", "Town", "--labels", "labels.json", "-s", "labels", "-e", 1]
    call(quantize, [*labelled, "--ptq", "best", "--ptq_seconds", 20, "--distill", 0.5])
    assert "correcting the FP32 weights: histogram, equalize, adaround" in capsys.readouterr().err
    start, end = history(folder / "labels")
    assert "loss" not in start and "loss" in end and start["miou"] > 0
    ranges = [
        {key: value for key, value in read_checkpoint(path).state.items() if key.endswith("min_val")}
        for path in ((folder / "labels").glob("*.pth"))
    ]
    assert len(ranges) == 3 and ranges[0]
    assert all(torch.equal(value, each[key]) for each in ranges for key, value in ranges[0].items())


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--start_from", "fp32", "--ptq", "mse"], "argument --ptq: is for --start_from ptq"),
        (["--start_from", "fp32", "--ptq_seconds", 5], "argument --ptq_seconds: is for --start_from ptq"),
        (["--ptq", "mse", "percentile"], "argument --ptq: percentile and mse are each a way"),
        (["--ptq_seconds", 5], "argument --ptq_seconds: limits adaround; add --ptq adaround"),
        (["--start_from", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_what_does_not_go_together_is_a_line_and_exit_code_2(folder, flags, line, capsys):
    with pytest.raises(SystemExit) as exit_info:
        call(quantize, [*IMAGES, "-s", "refused", *flags])
    assert exit_info.value.code == 2 and line in capsys.readouterr().err
    assert not (folder / "refused").exists()
