"""`--skip_bad`: every sample is read once before the work; those that cannot be are left out, counted and listed."""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from torch.utils.data import DataLoader, Dataset

from common.data.datasets import SampleSource, find_samples
from common.data.decoding import read_rgb
from common.data.label_files import read_label
from common.data.labelled_shots import find_labelled_shots
from common.data.loading import load_ids, load_image, region_of, worker_init
from common.data.pairs import BadSample, Sample
from common.data.shots import Shot
from common.system.distributed import gathered, rank, world_size
from common.system.files import write_json
from common.system.progress import progress
from models import Network

logger = logging.getLogger(__name__)

TRIED_HW = (32, 64)  # the smallest input: reading a file costs the same for any
LISTED = 50  # that a report spells out
SKIPPED_FILE = "skipped.json"


class _Read(Hashable, Protocol):
    @property
    def dataset(self) -> str: ...

    @property
    def image(self) -> Path: ...


Item = TypeVar("Item", bound=_Read)  # a Sample or a Shot


class _Reasons(Dataset, Generic[Item]):
    """Why a sample cannot be used, by index; empty where it can be."""

    def __init__(self, samples: Sequence[Item], read: Callable[[Item], object]):
        self.samples, self.read = samples, read

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> str:
        try:
            self.read(self.samples[index])
        except (ValueError, OSError) as error:
            return str(error)
        return ""


def usable_samples(source: SampleSource, split: str, bad: list[BadSample]) -> list[Sample]:
    """The samples of a split (`find_samples`); with `skip_bad` those that can be read, the others go to `bad`.

    The split is made of all pairs: a pair that cannot be read moves no other one from training to validation. Processes
    of torchrun share the reading and know the same afterwards; each reads with `workers` processes of its own.

    Raises:
        FileNotFoundError, ValueError: as `find_samples`; or no sample is left.
    """
    return _usable(source, split, bad, partial(find_samples, source, split), _read_sample)


def usable_labelled_shots(source: SampleSource, network: Network, split: str, bad: list[BadSample]) -> list[Shot]:
    """The same of `find_labelled_shots`."""
    find = partial(find_labelled_shots, source, network, split)
    return _usable(source, split, bad, find, partial(_read_labelled, network))


def _usable(
    source: SampleSource,
    split: str,
    bad: list[BadSample],
    find: Callable[[list[BadSample] | None], list[Item]],
    read: Callable[[Item], object],
) -> list[Item]:
    unpaired: list[BadSample] = []
    samples = find(unpaired if source.skip_bad else None)
    if not source.skip_bad:
        return samples
    unreadable = _unreadable(samples, read, split, source.workers)
    left_out = [*unpaired, *(BadSample(each.dataset, str(each.image), reason) for each, reason in unreadable.items())]
    bad += [each for each in left_out if each not in bad]
    if len(unreadable) == len(samples):
        raise ValueError(f"--skip_bad: no {split} image of {len(samples)} is left; the first: {left_out[-1].reason}")
    return [sample for sample in samples if sample not in unreadable]


def usable_shots(shots: Sequence[Shot], bad: list[BadSample], workers: int) -> list[Shot]:
    """Those of which all images can be read; the others go to `bad`, read and told as by `usable_samples`.

    Raises:
        ValueError: none is left.
    """
    unreadable = _unreadable(shots, _read_shot, "images", workers)
    bad += [BadSample(each.dataset, str(each.image), reason) for each, reason in unreadable.items()]
    if len(unreadable) == len(shots):
        raise ValueError(f"--skip_bad: no image of {len(shots)} is left; the first: {bad[-1].reason}")
    return [shot for shot in shots if shot not in unreadable]


def _read_sample(sample: Sample) -> None:
    load_ids(sample, load_image(sample, TRIED_HW)[1])


def _read_labelled(network: Network, shot: Shot) -> None:
    for path in shot.images:
        rgb = read_rgb(path, shot.image_bits, labelled=True)
        region_of(shot.dataset, path, rgb.shape[1], rgb.shape[0])
    read_label(shot, network.task, network.classes)


def _read_shot(shot: Shot) -> None:
    for path in shot.images:
        read_rgb(path, shot.image_bits)


def _unreadable(samples: Sequence[Item], read: Callable[[Item], object], split: str, workers: int) -> dict[Item, str]:
    own = samples[rank() :: world_size()]
    loader = DataLoader(_Reasons(own, read), batch_size=None, num_workers=workers, worker_init_fn=worker_init)
    reasons = zip(own, progress(loader, f"check {split}", unit="image", total=len(own)), strict=True)
    merged: dict[Item, str] = {sample: reason for part in gathered([*reasons]) for sample, reason in part if reason}
    return {sample: merged[sample] for sample in samples if sample in merged}


def report_bad(bad: Sequence[BadSample]) -> list[str]:
    """A sentence for each bad sample, at most LISTED, after their number; nothing where there is none."""
    if not bad:
        return []
    listed = [f"skipped: {each.path}: {each.reason.removeprefix(f'{each.path}: ')}" for each in bad[:LISTED]]
    rest = [f"and {len(bad) - LISTED} more, see results.json"] if len(bad) > LISTED else []
    return [f"{len(bad)} bad files were skipped (--skip_bad).", *listed, *rest]


def record_bad(folder: Path, bad: Sequence[BadSample]) -> None:
    """Say how many samples are left out, and list them in `folder`/skipped.json."""
    if bad:
        write_json(folder / SKIPPED_FILE, as_records(bad))
        logger.warning("%d bad files are skipped, listed in %s", len(bad), folder / SKIPPED_FILE)


def as_records(bad: Sequence[BadSample]) -> list[dict[str, str]]:
    """For JSON."""
    return [asdict(each) for each in bad]
