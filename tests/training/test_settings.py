"""Settings and flags are one: what a command line says comes out of its settings as the same command line."""

import shlex

import pytest

import quantize_model_sceneseg
from common.cli.training import settings_of
from common.system.settings import flat
from common.training.settings import (
    AUTO,
    QatRunSettings,
    RunSettings,
    TrainingSettings,
    images_at_a_time,
    observed_images,
    retraining_command,
)
from examples import train_sceneseg

EVERY_FLAG = shlex.split(
    "-s 'my runs/a' -r data --datasets Town Country --workers 0 --skip_bad --image_bits 12 -e 9 --batch_size 12 "
    "--gradient_accumulation 3 --precision bf16 --learning_rate 2e-4 --weight_decay 0.01 --schedule cosine "
    "--warmup_steps 7 --ema 0.9 --unweighted_loss --augmentation 0.25 --samples_per_epoch 100 --cache_dir cache "
    "--reduced_decode --checkpoint_interval 40 --keep_checkpoints 2 --num_val_samples 5 --validation_pictures 1 "
    "--tensorboard --labels labels.json -n my_network:NET -fp32 weights.pth --weights ema --target tensorrt "
    "--no-per_channel --reduced_range --start_from ptq --ptq equalize adaround --ptq_seconds 30 "
    "--keep_float context --keep_float 'neck.*' --input_hw 64,128 --no-fuse --freeze_batch_norm 2 "
    "--freeze_observers 3 --num_calibration_samples 50 --distill 0.5 --teacher whole.pth --recipe extended "
    "--device cpu --seed 5 --threads 1"
)
PLACES = ["-s", "out", "-r", "data"]


def parsed(words):
    return quantize_model_sceneseg.get_args_parser().parse_args(words)


def settings(*words):
    return settings_of(QatRunSettings, parsed([*PLACES, *words] if "-s" not in words else words))


def test_every_flag_is_a_setting_of_the_same_name():
    for script, kind in (
        (quantize_model_sceneseg, quantize_model_sceneseg.QatRunSettings),
        (train_sceneseg, train_sceneseg.Fp32RunSettings),
    ):
        flags = vars(script.get_args_parser().parse_args(PLACES)).keys()
        assert flags - {"processes"} == flat(kind()).keys() - {"processes"}


def test_no_flag_of_the_test_above_has_its_default():
    """Otherwise one that is dropped would not be noticed."""
    given, usual = flat(settings(*EVERY_FLAG)), flat(settings("--threads", "99"))
    of_images = {"images", "egolanes_checkpoint"}  # in the place of `root`
    assert {name for name in given if given[name] == usual[name]} == {
        "root",
        "debug",
        "resume",
        "processes",
    } | of_images


WITHOUT_LABELS = shlex.split("-s out --images drives more -n AutoSteer --egolanes_checkpoint EgoLanes.pth")


@pytest.mark.parametrize(
    "words", [EVERY_FLAG, PLACES, WITHOUT_LABELS, [*PLACES, "--recipe", "extended", "--learning_rate", "1e-5"]]
)
def test_the_retraining_command_is_the_training_with_more_modules_in_float(words):
    first = flat(settings(*words))
    python, script, *again = shlex.split(retraining_command(first, ["head", "context"]))
    assert (python, script) == ("python", "quantize_model_sceneseg.py")
    patterns = tuple(dict.fromkeys([*first["keep_float"], "head", "context"]))
    expected = {"keep_float": patterns, "model_save_root_path": f"{first['model_save_root_path']}_keep_float"}
    assert flat(settings_of(QatRunSettings, parsed(again))) == first | expected


def test_what_is_of_one_call_is_not_repeated():
    command = retraining_command(flat(settings("--resume", "auto", "--debug")), ["head"])
    assert "resume" not in command and "debug" not in command


def test_several_processes_are_started_again():
    command = retraining_command({**flat(settings()), "processes": 4}, ["head"])
    assert command.startswith("torchrun --nproc_per_node=4 quantize_model_sceneseg.py --model_save_root_path out_keep")


def test_settings_that_no_run_can_have_are_refused():
    for name, value in (
        ("epochs", 0),
        ("batch_size", -1),
        ("gradient_accumulation", 0),
        ("learning_rate", float("nan")),
        ("precision", "fp64"),
        ("schedule", "linear"),
        ("ema", 1.0),
    ):
        with pytest.raises(ValueError, match=f"^{name} is "):
            TrainingSettings(**{name: value})
    with pytest.raises(ValueError, match="^batch_size is 'x'"):
        observed_images({"batch_size": "x"})
    with pytest.raises(ValueError, match="^processes is 0"):
        observed_images({"batch_size": 8, "processes": 0})


def test_the_images_that_observers_see_at_a_time():
    assert observed_images({}) is None
    assert observed_images({"batch_size": 32}) == 32  # of a checkpoint before there were parts
    assert observed_images({"batch_size": 32, "gradient_accumulation": 4, "processes": 2}) == 4
    assert observed_images({"batch_size": 32, "samples_per_epoch": 6}) == 6
    in_parts = [TrainingSettings(batch_size=8, gradient_accumulation=parts) for parts in (AUTO, 1, 2, 3, 8, 16)]
    assert [images_at_a_time(RunSettings(training=each)) for each in in_parts] == [8, 8, 4, 3, 1, 1]


def test_a_run_needs_no_command_line():
    assert RunSettings().training == TrainingSettings()
