"""Runs that are stopped, killed, damaged and spread over processes: real processes on a tiny network."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from common.networks.checkpoints import read_checkpoint
from examples.make_scenes import write_dataset

ROOT = Path(__file__).resolve().parents[2]
TINY = [sys.executable, "tests/tiny_run.py"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "tests/tiny_run.py"]
FLAGS = ["-e", "4", "--batch_size", "4", "--checkpoint_interval", "8", "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, "Town", 30, seed=0, size=(48, 96))
    return root


def start(folder, data, *flags, program=TINY):
    command = [*program, "-s", folder, "-r", data, "--datasets", "Town", "--workers", "1", *FLAGS, *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def finish(process, code=0):
    """What a process tells on stderr."""
    _, notes = process.communicate(timeout=900)
    assert process.returncode == code, notes
    return notes


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("unbroken")
    finish(start(folder, data))
    return folder


def assert_same_run(folder, unbroken):
    expected, actual = (read_checkpoint(path / "final.pth").state for path in (unbroken, folder))
    for key, value in expected.items():
        assert torch.equal(value, actual[key]), key
    assert (folder / "history.json").read_text() == (unbroken / "history.json").read_text()
    best, same_best = (read_checkpoint(path / "best.pth") for path in (unbroken, folder))
    assert best.description.metrics == same_best.description.metrics


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def test_the_record_of_a_run(unbroken):
    history = json.loads((unbroken / "history.json").read_text())
    with (unbroken / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [entry["step"] for entry in history]
    assert [float(row["miou"]) for row in rows] == [entry["miou"] for entry in history]
    assert all(float(row["images_per_second"]) > 0 and 0 <= float(row["data_wait"]) <= 1 for row in rows)
    best = read_checkpoint(unbroken / "best.pth").description.metrics["together"]["miou"]
    assert best == max(entry["miou"] for entry in history)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_stopped_run_saves_says_so_and_resumes(data, unbroken, tmp_path, number, code):
    process = start(tmp_path, data)
    wait_for(lambda: any(tmp_path.glob("checkpoint_*")), process)
    process.send_signal(number)
    notes = finish(process, code)
    assert "--resume auto" in notes
    written = max(tmp_path.glob("checkpoint_*.pth"), key=lambda path: int(path.stem.rpartition("_")[2]))
    assert written.name in notes
    finish(start(tmp_path, data, "--resume", "auto"))
    assert_same_run(tmp_path, unbroken)


def flip_a_bit(path):
    """In the middle of the largest tensor, where only a checksum finds it; between two records it would be harmless."""
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda each: each.file_size)
        data = archive.read(record)
    content = bytearray(path.read_bytes())
    content[content.index(data) + len(data) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_newest_checkpoint_is_skipped_and_the_last_are_kept(data, unbroken, tmp_path):
    for name in ("checkpoint_epoch_0_step_4.pth", "checkpoint_epoch_1_step_9.pth", "checkpoint_epoch_1_step_11.pth"):
        shutil.copy(unbroken / name, tmp_path)
    newest = tmp_path / "checkpoint_epoch_1_step_11.pth"
    flip_a_bit(newest)
    leftover = tmp_path / ".checkpoint_epoch_1_step_14.999999999.tmp.pth"
    leftover.write_bytes(b"half")
    notes = finish(start(tmp_path, data, "--resume", "auto", "--keep_checkpoints", 2))
    assert "step_11.pth is damaged" in notes
    assert "resuming from" in notes and "step_9.pth" in notes
    assert not leftover.exists()
    kept = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert kept == ["best.pth", "checkpoint_epoch_3_step_27.pth", "checkpoint_epoch_3_step_28.pth", "final.pth"]
    expected, actual = (read_checkpoint(path / "final.pth").state for path in (unbroken, tmp_path))
    assert all(torch.equal(value, actual[key]) for key, value in expected.items())


def test_a_folder_of_damaged_checkpoints_is_not_started_anew(data, tmp_path):
    (tmp_path / "checkpoint_epoch_0_step_4.pth").write_bytes(b"PK half")
    assert "all 1 checkpoints" in finish(start(tmp_path, data, "--resume", "auto"), code=1)


@pytest.mark.slow
def test_a_finished_run_is_not_trained_further(data, unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "run")
    finish(start(tmp_path / "run", data, "--resume", "auto"))
    assert_same_run(tmp_path / "run", unbroken)


def kill(process, folder, seconds):
    """SIGKILL `seconds` after the first sign of progress; whether it met a file that was being written."""
    before = {*folder.iterdir(), folder / ".lock"}
    wait_for(lambda: set(folder.iterdir()) - before, process)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL, any(folder.glob(".*.tmp*"))


def test_a_killed_run_goes_on(data, unbroken, tmp_path):
    """Killed while the first file is written, and twice later."""
    for seconds in (0.0, 0.05, 0.3):
        kill(start(tmp_path, data, "--resume", "auto"), tmp_path, seconds)
    finish(start(tmp_path, data, "--resume", "auto"))
    assert_same_run(tmp_path, unbroken)
    assert not list(tmp_path.glob(".*.tmp*"))


@pytest.mark.slow
def test_twenty_kills_of_a_quantization(data, tmp_path):
    """Random moments, many of them while a checkpoint of 55 MB is written; each run goes on from the newest one."""
    size = ["--width", "0.03125", "--input_hw", "32,64", "--batch_size", "4", "--workers", "0"]
    common = ["-r", data, "--datasets", "Town", "--threads", "1"]

    def run(program, *flags):
        command = list(map(str, [sys.executable, *program, *common, *flags]))
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)

    finish(run(["-m", "examples.train_sceneseg"], "-s", tmp_path / "fp32", "-e", 1, *size))
    quantize = ["quantize_model_sceneseg.py", "-fp32", tmp_path / "fp32" / "best_model.pth", "-e", 6, "--batch_size", 4]
    quantize += ["--checkpoint_interval", 4, "--num_val_samples", 1, "--num_calibration_samples", 4, "--workers", 1]
    quantize += ["--keep_checkpoints", 2, "--learning_rate", "1e-4", "--resume", "auto"]
    finish(run(quantize, "-s", tmp_path / "unbroken"))

    folder, rng, while_writing = tmp_path / "killed", random.Random(0), 0
    folder.mkdir()
    for number in range(20):
        was_killed, writing = kill(run(quantize, "-s", folder), folder, rng.uniform(0, 2))
        assert was_killed, f"the run ended before kill {number}"
        while_writing += writing
    finish(run(quantize, "-s", folder))
    print(f"{while_writing} of 20 kills while a file was written")
    final = "qat_model_final_calibrated.pth"
    expected, actual = (read_checkpoint(path / final).state for path in (tmp_path / "unbroken", folder))
    assert all(torch.equal(value, actual[key]) for key, value in expected.items())
    assert (folder / "history.json").read_text() == (tmp_path / "unbroken" / "history.json").read_text()


def two_processes(folder, data, *flags):
    finish(start(folder, data, *flags, program=TORCHRUN))


def test_two_processes_train_as_one_does_at_the_same_global_batch(data, tmp_path):
    """Without batch statistics and dropout nothing but rounding differs; 27 images leave a last batch of 3.

    3 validation images: an odd number, so that the ranks' shares differ; none may be counted twice.
    """
    flags = ["--dropout", 0, "--frozen_batch_norm", "-e", 2, "--ema", 0.5, "--gradient_accumulation", 2]
    (tmp_path / "one").mkdir()
    finish(start(tmp_path / "one", data, *flags))
    two_processes(tmp_path / "two", data, *flags)
    expected, actual = (read_checkpoint(tmp_path / name / "final.pth").state for name in ("one", "two"))
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-3, atol=1e-5)
    histories = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("one", "two")]
    for one, two in zip(*histories, strict=True):
        assert (one["epoch"], one["step"], one["images"]) == (two["epoch"], two["step"], two["images"])
        assert two["images"] == 3
        assert abs(one["loss"] - two["loss"]) < 1e-5
        assert abs(one["miou"] - two["miou"]) < 1e-2


@pytest.mark.slow
def test_two_processes_with_batch_norm_and_dropout_resume_exactly(data, tmp_path):
    two_processes(tmp_path / "unbroken", data, "-e", 2)
    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "unbroken" / "checkpoint_epoch_0_step_4.pth", tmp_path / "resumed")
    two_processes(tmp_path / "resumed", data, "-e", 2, "--resume", "auto")
    assert_same_run(tmp_path / "resumed", tmp_path / "unbroken")
