"""The state of PyTorch's random numbers: taken, and put back. CUDA's is left alone unless the run is on it."""

from typing import Any

import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of the CPU's generator, and of the device's where that is a CUDA device (else None)."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on from `random_state`; what is of a device that is not there is left out."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
