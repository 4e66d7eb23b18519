import math

import pytest

import quantize_model_sceneseg
from common.cli.training import settings_of
from common.system.settings import flat
from common.training.schedule import learning_rate
from common.training.settings import RECIPES, QatRunSettings, TrainingSettings


def rates(schedule, warmup, total=10):
    settings = TrainingSettings(schedule=schedule, warmup_steps=warmup, learning_rate=1.0)
    return [learning_rate(settings, step, total) for step in range(total)]


def test_constant():
    assert rates("constant", 0) == [1.0] * 10


def test_warm_up_rises_in_equal_steps_to_the_full_rate():
    assert rates("constant", 3)[:4] == [0.25, 0.5, 0.75, 1.0]


def test_cosine_falls_from_the_full_rate_to_above_0():
    values = rates("cosine", 2)
    assert values[2] == 1.0
    assert values[6] == pytest.approx(0.5)  # half way between step 2 and the end, 10
    assert values[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert values[2:] == sorted(values[2:], reverse=True)


def parsed(*flags):
    required = ["-s", "out", "-r", "data"]
    args = quantize_model_sceneseg.get_args_parser().parse_args([*required, *flags])
    return flat(settings_of(QatRunSettings, args, quantize_model_sceneseg.defaults_of(args)))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_gives_what_the_command_line_does_not(name):
    assert parsed("--recipe", name).items() >= RECIPES[name].items()
    given = parsed("--ema", "0", "--recipe", name, "--learning_rate", "3")
    assert given.items() >= {**RECIPES[name], "ema": 0.0, "learning_rate": 3.0}.items()


def test_the_original_recipe_is_the_default():
    assert parsed().items() >= RECIPES["original"].items()
    assert RECIPES["original"]["learning_rate"] == 1e-5


def test_a_run_of_one_epoch_keeps_its_statistics_and_learns_the_logits_of_fp32():
    found = {flags: parsed(*flags.split()) for flags in ("", "-e 2", "-e 1")}
    assert {flags: each["freeze_batch_norm"] for flags, each in found.items()} == {"": 1, "-e 2": 1, "-e 1": 0}
    assert {flags: each["distill"] for flags, each in found.items()} == {"": 0.0, "-e 2": 0.0, "-e 1": 1.0}
    args = quantize_model_sceneseg.get_args_parser().parse_args(["-s", "out", "--images", "drive", "-e", "1"])
    assert "distill" not in quantize_model_sceneseg.defaults_of(args)  # which learns nothing else
    given = parsed("-e", "1", "--freeze_batch_norm", "1", "--distill", "0")
    assert (given["freeze_batch_norm"], given["distill"]) == (1, 0.0)
