"""The table of recipes: rows of a user's network from the script to the CSV, and what several seeds come to."""

import csv
from pathlib import Path

import numpy as np
import pytest

from benchmarks import qat_recipes
from benchmarks.qat_recipes import FP32, Run, summarise
from tests.command_lines import call
from tests.own_folder import own_folder
from tests.town import CLASSES, DATA, write_town

SOURCE = f"""
from torch import nn

from models import Network


def Net():
    first = (nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(*first, nn.Upsample(scale_factor=2), nn.Conv2d(8, 5, 3, 1, 1))


NET = Network(build=Net, input_shape=(3, 32, 48), size_multiple=2, classes={tuple(CLASSES)})
"""


def read(name):
    with (Path("recipes") / name).open() as file:
        return list(csv.DictReader(file))


def test_rows_of_a_users_network(tmp_path):
    names = [FP32, "PTQ", "PTQ, tensorrt", "trained in float", "QAT without labels"]
    with own_folder(tmp_path, "recipes_net", SOURCE):
        write_town(Path("data"))
        flags = ["-e", 1, "--batch_size", 4, "--num_calibration_samples", 4, "--seeds", 3, "--precision", "bf16"]
        source = ["-n", "recipes_net:NET", "-fp32", "weights.pth", "-r", "data", *DATA]
        call(qat_recipes, [*source, "--output", "recipes", *flags, "--only", *names])
        rows, runs = read("recipes.csv"), read("runs.csv")
        trained = sorted(path.parent.name for path in Path("recipes").glob("*/qat_model_final_calibrated.pth"))
    assert [row["network"] for row in rows] == [row["network"] for row in runs] == names
    assert trained == ["QAT_without_labels_3", "trained_in_float_3"]
    for row, alone in zip(rows, runs, strict=True):
        assert 0 < float(row["miou"]) == float(alone["miou"]) < 1
        assert row["images"] == "2" and alone["seed"] == "3"
        rounded = row["network"] in ("PTQ", "QAT without labels")  # TensorRT's outputs are in float
        assert (row["unrounded"] != row["miou"]) == rounded
    change = float(rows[3]["miou"]) - float(rows[0]["miou"])
    assert float(rows[3]["against_fp32"]) == pytest.approx(change, abs=1e-12) and change != 0


def test_seeds_are_averaged_and_paired_with_the_fp32_network_by_image():
    rng = np.random.default_rng(0)
    fp32 = rng.integers(50, 100, (12, 2, 2))
    runs = [Run(FP32, 0, fp32, fp32, 0)]
    for seed, more in ((0, 10), (1, 30)):  # right pixels of every image
        runs.append(Run("better", seed, fp32 + more * np.eye(2, dtype=int), fp32, 1))
    reference, better = summarise(runs, ["drive"] * 12, 0)
    assert (reference.seeds, reference.against_fp32, better.seeds) == (1, None, 2)
    assert better.miou == pytest.approx((better.lowest + better.highest) / 2)
    assert better.against_fp32 == pytest.approx(better.miou - reference.miou)
    assert better.unrounded == reference.miou
    assert 0 < better.low < better.against_fp32 < better.high < better.miou
