"""The images that flags name: samples with masks of classes, images without labels, or with others."""

import argparse
from pathlib import Path
from typing import Any

from common.data.bad_samples import usable_labelled_shots, usable_shots
from common.data.datasets import SampleSource
from common.data.labelled_shots import labelled_source
from common.data.pairs import BadSample
from common.data.shots import Shot, find_shots
from common.scoring.figures import Score
from common.scoring.tasks import score_of
from models import Network


def sample_source(args: argparse.Namespace, network: Network, root: Path) -> SampleSource:
    """What the flags of `add_dataset_arguments` say of the samples below `root` for the network of `--name`."""
    return SampleSource.of(args.name, network, root, **_options(args))


def _options(args: argparse.Namespace) -> dict[str, Any]:
    named = {name: getattr(args, name) for name in ("labels", "skip_bad", "workers", "image_bits")}
    return {"names": args.datasets, **named}


def compares_outputs(args: argparse.Namespace, network: Network) -> bool:
    """Whether a benchmark compares outputs: it has no labels, or others than masks of classes."""
    return bool(args.images) or not network.maps_classes


def score_against_labels(args: argparse.Namespace, name: str, network: Network) -> Score | None:
    """By what the models of such a benchmark are judged; None without labels."""
    labelled = args.dataset_root and not args.images and not network.maps_classes
    return score_of(name, network) if labelled else None


def shots_of(args: argparse.Namespace, network: Network, bad: list[BadSample]) -> list[Shot]:
    """The images of `--images` for a network; with `--skip_bad` those that can be read, the others go to `bad`."""
    shots = find_shots(args.images, network.images, args.image_bits)
    return usable_shots(shots, bad, args.workers) if args.skip_bad else shots


def labelled_shots_of(args: argparse.Namespace, network: Network, split: str, bad: list[BadSample]) -> list[Shot]:
    """Those of `--dataset_root` for a network that gives no map of classes; with `--skip_bad` others go to `bad`."""
    return usable_labelled_shots(
        labelled_source(args.name, network, args.dataset_root, **_options(args)), network, split, bad
    )
