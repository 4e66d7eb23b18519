"""How a run loads its samples: from their files, or from a cache of prepared ones."""

import argparse

from common.datasets import Loader, load_sample


def sample_loader(args: argparse.Namespace, training: bool) -> Loader:
    """By the flags."""
    return load_sample
