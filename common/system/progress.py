"""Progress bars: shown to a person at a terminal, silent in a log file."""

import os
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable | None, description: str, unit: str = "it", **options: Any) -> tqdm:
    """tqdm on stderr, silent where stderr is not a terminal and in all but the first of torchrun's processes."""
    hidden = None if os.environ.get("RANK", "0") == "0" else True
    return tqdm(items, desc=description, unit=unit, dynamic_ncols=True, disable=hidden, leave=False, **options)
