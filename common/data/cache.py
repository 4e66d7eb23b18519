"""Prepared samples on the disk: decoded, cut, looked up and resized once, read back in a millisecond.

One file a sample. Its name says where it came from, its head what it was made of (paths, sizes, times of change,
region, input size, version of the preparation), and a checksum of what follows: a changed source, another version of
the code or a damaged entry is seen, and the entry is made anew.
"""

import hashlib
import logging
import math
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from common.data.datasets import Sample, find_spec
from common.data.loading import Loaded, Loader, load_sample
from common.data.shots import Shot, ShotFormat, ShotLoader
from common.system.distributed import is_writer
from common.system.files import atomic_path, remove_leftovers, require_ordinary, short_stem

logger = logging.getLogger(__name__)

PREPARATION = 2  # count up when `load_sample` gives other values than before
PROBE = (4000, 3000)  # an image size whose region of interest stands for a dataset's rule
KEY_BYTES = 32  # of SHA-256
CHECKSUM_BYTES = 4


def sample_loader(cache_dir: Path | None, *, reduced: bool = False) -> Loader:
    """How a run loads its samples: from the cache in `cache_dir`, if any; `reduced` as in `load_sample`."""
    if cache_dir is None:
        return partial(load_sample, reduced=reduced)
    return partial(load_cached, cache_dir, reduced=reduced)


def open_cache(folder: Path) -> None:
    """Make the folder of a cache, without what killed writers left there.

    Raises:
        OSError: it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if is_writer():
        remove_leftovers(folder)


def load_cached(folder: Path, sample: Sample, input_hw: tuple[int, int], *, reduced: bool = False) -> Loaded:
    """What `load_sample` returns, from the cache in `folder` if it is up to date there; otherwise it is put there."""
    path, key = entry_path(folder, sample, input_hw, reduced), entry_key(sample, input_hw, reduced)
    classes, pixels = sample.labels.class_count, input_hw[0] * input_hw[1]
    values = _entry(path, key, 4 * pixels + 4 * classes)
    if values is None:
        loaded = load_sample(sample, input_hw, reduced=reduced)
        _keep(path, key, loaded)
        return loaded
    image, ids, weights = np.split(values, [3 * pixels, 4 * pixels])
    return image.reshape(*input_hw, 3), ids.reshape(input_hw), weights.view(np.float32)


def shot_loader(shot_format: ShotFormat, cache_dir: Path | None, *, reduced: bool = False) -> ShotLoader:
    """The same for images without masks, of any folders."""
    if cache_dir is None:
        return partial(shot_format.load, reduced=reduced)
    return partial(load_cached_shot, cache_dir, shot_format, reduced=reduced)


def load_cached_shot(folder: Path, shot_format: ShotFormat, shot: Shot, *, reduced: bool = False) -> np.ndarray:
    """What `ShotFormat.load` returns, from the cache in `folder` if it is up to date there; otherwise put there."""
    hw, letterboxed = shot_format.image.hw, shot_format.letterboxed
    sources = tuple(str(path.resolve()) for path in shot.images)
    path = _path(folder, shot.image, (sources, hw, letterboxed, reduced))
    key = _key((PREPARATION, sources, shot.image_bits, _times(shot.images), hw, letterboxed, reduced))
    shape = (len(shot.images), *hw, 3)
    values = _entry(path, key, math.prod(shape))
    if values is None:
        images = shot_format.load(shot, reduced=reduced)
        _keep(path, key, [images])
        return images
    return values.reshape(shape)


def entry_path(folder: Path, sample: Sample, input_hw: tuple[int, int], reduced: bool) -> Path:
    """One file for a sample at a size, so that a changed source replaces its old entry."""
    return _path(folder, sample.image, (*_sources(sample), input_hw, reduced))


def _path(folder: Path, image: Path, made_of: object) -> Path:
    name = hashlib.sha256(repr(made_of).encode()).hexdigest()[:24]
    return folder / f"{short_stem(image.stem)}.{name}.pair"


def entry_key(sample: Sample, input_hw: tuple[int, int], reduced: bool) -> bytes:
    """A hash of all that the decoded and resized sample depends on."""
    times = _times((sample.image, sample.mask))
    region = find_spec(sample.dataset).region(*PROBE)
    labels = (sample.labels.stored, sample.labels.to_class, sample.labels.class_count)
    made_of = (PREPARATION, labels, _sources(sample), sample.image_bits, times, region, input_hw, reduced)
    return _key(made_of)


def _key(made_of: object) -> bytes:
    return hashlib.sha256(repr(made_of).encode()).digest()


def _times(paths: Sequence[Path]) -> list[tuple[int, int]]:
    return [(path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def _sources(sample: Sample) -> tuple[str, str]:
    return str(sample.image.resolve()), str(sample.mask.resolve())


def _entry(path: Path, key: bytes, length: int) -> np.ndarray | None:
    """The bytes that an entry of this key keeps, writable, as tensors want them; None where there is none, or none that
    is what was written."""
    try:
        require_ordinary(path)
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if content[:KEY_BYTES] != key:
        return None
    payload = memoryview(content)[KEY_BYTES + CHECKSUM_BYTES :]
    checksum = int.from_bytes(content[KEY_BYTES : KEY_BYTES + CHECKSUM_BYTES], "little")
    if len(payload) != length or zlib.crc32(payload) != checksum:
        logger.warning("%s: a damaged cache entry, made anew", path)
        return None
    return np.frombuffer(payload, np.uint8).copy()


def _keep(path: Path, key: bytes, arrays: Sequence[np.ndarray]) -> None:
    payload = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    with atomic_path(path, durable=False) as temporary:  # what a power failure loses, the checksum finds
        temporary.write_bytes(key + zlib.crc32(payload).to_bytes(CHECKSUM_BYTES, "little") + payload)
