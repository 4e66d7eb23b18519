"""The flags that FP32 training and quantization-aware training share, and the settings that flags make."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from common.cli.flags import add_dataset_arguments, add_images_argument
from common.cli.types import (
    decay,
    fraction,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    positive_int_or_auto,
)
from common.system.settings import from_flat, values_of
from common.training.settings import PRECISIONS, RECIPES, SCHEDULES, RunSettings

Settings = TypeVar("Settings", bound=RunSettings)


# flags of data with masks, or of learning from them
OF_LABELS = ("datasets", "labels", "unweighted_loss", "distill")


def add_training_arguments(parser: argparse.ArgumentParser, *, images: bool = False) -> None:
    """All of them, with `images` also `--images` in the place of `--root`; their defaults come from `use_defaults`."""
    parser.add_argument("-s", "--model_save_root_path", required=True, type=Path, metavar="DIR", help="checkpoints")
    if images:
        source = parser.add_mutually_exclusive_group(required=True)
        source.add_argument("-r", "--root", type=Path, metavar="DIR", help="data root, of images with masks")
        add_images_argument(source, "learn what the FP32 network says")
    else:
        parser.add_argument("-r", "--root", required=True, type=Path, metavar="DIR", help="data root")
    add_dataset_arguments(parser)
    _add_step_arguments(parser)
    _add_data_arguments(parser)
    _add_checkpoint_arguments(parser)


def _add_step_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("-e", "--epochs", type=positive_int, help="passes over the training images")
    group.add_argument("--batch_size", type=positive_int, help="images of one step, over all processes")
    group.add_argument(
        "--gradient_accumulation",
        type=positive_int_or_auto,
        metavar="PARTS",
        help="compute a step in this many parts, one after the other; auto: as many as memory asks for",
    )
    group.add_argument("--precision", choices=PRECISIONS, help="arithmetic outside fake quantization")
    group.add_argument("--learning_rate", type=positive_float, help="of AdamW")
    group.add_argument("--weight_decay", type=non_negative_float, help="of AdamW")
    group.add_argument("--schedule", choices=SCHEDULES, help="of the learning rate")
    group.add_argument("--warmup_steps", type=non_negative_int, help="steps of a rising learning rate")
    group.add_argument("--ema", type=decay, metavar="DECAY", help="average the weights; 0: do not")
    group.add_argument("--unweighted_loss", action="store_true", help="cross-entropy without the class weights")


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--augmentation", type=fraction, help="strength of the augmentation, 0 to 1")
    group.add_argument("--samples_per_epoch", type=positive_int, help="train on this many images of each epoch's order")
    group.add_argument(
        "--cache_dir", type=Path, metavar="DIR", help="keep decoded and resized images here, about 0.8 MB each"
    )
    group.add_argument(
        "--reduced_decode", action="store_true", help="decode large JPEG training images at half their size"
    )


def _add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("checkpoints and records")
    group.add_argument("--checkpoint_interval", type=positive_int, help="samples between checkpoints within an epoch")
    group.add_argument("--keep_checkpoints", type=positive_int, metavar="K", help="keep the last K; default: all")
    group.add_argument("--resume", metavar="CKPT", help="go on from a checkpoint of this script; auto: from the newest")
    group.add_argument(
        "--num_val_samples", type=positive_int, help="validation images per dataset at each checkpoint; default: all"
    )
    group.add_argument("--validation_pictures", type=non_negative_int, metavar="N", help="drawn per dataset, each time")
    group.add_argument("--tensorboard", action="store_true", help="write events for TensorBoard, too")


def use_defaults(parser: argparse.ArgumentParser, settings: RunSettings) -> None:
    """Give the flags, which have the names of the fields, the values of the settings as defaults."""
    for name, value in values_of(settings).items():
        if value is not None:
            parser.set_defaults(**{name: list(value) if isinstance(value, tuple) else value})


def add_recipe_argument(parser: argparse.ArgumentParser) -> None:
    """`--recipe`, from which the flags in `RECIPES` take what the command line does not say."""
    parser.add_argument("--recipe", choices=sorted(RECIPES), help="defaults of the flags that say so")


def settings_of(
    kind: type[Settings],
    args: argparse.Namespace,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    processes: int = 1,
) -> Settings:
    """The settings of a run by its flags, which have the names of the fields; `defaults` come before a recipe's.

    Args:
        processes: that share the run, of which the command line says nothing.

    Raises:
        ValueError: flags that contradict each other.
    """
    given = {name: value for name, value in vars(args).items() if value is not None}
    recipe = RECIPES.get(getattr(args, "recipe", ""), {})
    return from_flat(kind, {**recipe, **defaults, **given, "processes": processes})
