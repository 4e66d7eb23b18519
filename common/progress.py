"""Progress bars: shown to a person at a terminal, silent in a log file."""

from collections.abc import Iterable

from tqdm import tqdm


def progress(items: Iterable | None, description: str, unit: str = "it", **options) -> tqdm:
    """tqdm on stderr, without output where stderr is not a terminal."""
    return tqdm(items, desc=description, unit=unit, dynamic_ncols=True, disable=None, leave=False, **options)
