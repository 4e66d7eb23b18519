"""What an optimized file says of itself: one whose operators are integer already, where others hold pairs."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

KEY = "optimized"  # of the metadata of a file; absent where it is none


@dataclass(frozen=True)
class OptimizedNote:
    """By what an optimized file was written, and what it holds."""

    by: str  # the runtime whose optimisation it holds, with its version
    integer_operators: Mapping[str, int]  # operator -> how many compute on codes
    weight_bits: int  # of the codes of convolutions: 8, or 7 with --reduced_range

    def __str__(self) -> str:
        listed = ", ".join(f"{count} {name}" for name, count in self.integer_operators.items())
        return f"optimized by {self.by}: {listed} on codes"

    def as_metadata(self) -> dict[str, str]:
        """The entry of a file."""
        return {KEY: json.dumps(asdict(self))}

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> "OptimizedNote | None":
        """That of a file's metadata; None for a file with pairs, and for one that others wrote."""
        try:
            return cls(**json.loads(metadata[KEY]))
        except (KeyError, TypeError, ValueError):
            return None
