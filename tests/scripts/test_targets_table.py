"""The table of targets, of a user's network: every file keeps its rules, and is run."""

import csv
from pathlib import Path

import pytest

from benchmarks import targets
from common.runtimes.targets import TARGETS
from tests.command_lines import call
from tests.own_folder import TWO_MAPS, own_folder, write_drive


def test_a_users_network_for_every_target(tmp_path, capsys):
    with own_folder(tmp_path, "two_maps", TWO_MAPS):
        write_drive(Path("drive"), 12)
        flags = ["--num_calibration_samples", 8, "--runs", 2, "--csv", "targets.csv"]
        call(targets, ["-n", "two_maps:NET", "-p", "weights.pth", "--images", "drive", *flags])
        with Path("targets.csv").open() as file:
            rows = {row["target"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(TARGETS)
    assert {row["broken_rules"] for name, row in rows.items() if name != "executorch"} == {"0"}
    assert (rows["executorch"]["broken_rules"], rows["executorch"]["runtime"]) == ("", "ExecuTorch")
    assert rows["tensorrt"]["weights"] == "per channel" and rows["onnxruntime"]["weights"] == "per tensor"
    for row in rows.values():
        assert all(float(decibels) > 20 for decibels in row["sqnr_db"].split())
        assert len(row["sqnr_db"].split()) == 2 and 0.9 < float(row["equal_pixels"]) <= 1  # one is a map of classes
        assert float(row["faster_than_fp32"]) == pytest.approx(float(row["fp32_ms"]) / float(row["p50_ms"]))
    assert "ms in ONNX Runtime, 1 threads" in capsys.readouterr().out
