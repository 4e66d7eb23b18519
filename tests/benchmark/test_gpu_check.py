"""The check of a GPU, rehearsed on the CPU, and the kit for a machine without a network."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.gpu_check import FUNCTIONS, PARTS
from benchmarks.gpu_context import samples_of
from benchmarks.gpu_kit import WHEELS, pins, write_small
from common.data.loading import load_sample
from examples.make_scenes import write_dataset

ROOT = Path(__file__).resolve().parents[2]


def rehearse(folder, *flags):
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--rehearse", "--output", str(folder), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done, json.loads((folder / "results.json").read_text())["parts"]


def test_a_part_runs_and_its_figures_are_kept(tmp_path):
    done, parts = rehearse(tmp_path, "--parts", "loader")
    assert done.returncode == 0, done.stdout + done.stderr
    assert parts["loader"]["status"] == "passed"
    assert len(parts["loader"]["checks"]) == 5


@pytest.mark.slow
def test_the_whole_rehearsal(tmp_path):
    done, parts = rehearse(tmp_path, "--seconds", "7200", "--at_once", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(FUNCTIONS, "passed")


def test_the_kit_has_what_is_installed_here():
    installed = {name: version(name) for name in WHEELS}
    assert dict(pin.split("==") for pin in pins()) == installed


def test_every_part_has_a_limit_and_correctness_comes_first():
    assert sorted(part.name for part in PARTS) == sorted(FUNCTIONS)
    alone = [part.alone for part in PARTS]
    assert alone == sorted(alone)


def test_a_kit_holds_a_dataset_of_the_same_scenes_in_less_space(tmp_path):
    write_dataset(tmp_path / "large", "Scenes", 11, 0, (64, 128))
    samples = samples_of(tmp_path / "large", "Scenes", "train")
    write_small(samples, tmp_path / "small" / "Scenes" / "Scenes")
    for sample, small in zip(samples[:3], samples_of(tmp_path / "small", "Scenes", "train")[:3], strict=True):
        (image, mask, _), (small_image, small_mask, _) = (load_sample(each, (64, 128)) for each in (sample, small))
        assert (mask == small_mask).all()
        assert abs(image.astype(int) - small_image).mean() < 4
