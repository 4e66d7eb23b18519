"""The arithmetic of training: full float32, TF32 on CUDA, or bfloat16 where it is safe."""

from contextlib import AbstractContextManager

import torch
from torch import nn

from common.quantization.fake_quantize import FakeQuantize


def set_precision(precision: str, device: torch.device) -> None:
    """Allow TF32, or rule it out.

    Raises:
        ValueError: TF32 was asked for on a device that has none.
    """
    if precision == "tf32" and device.type != "cuda":
        raise ValueError("--precision tf32: only CUDA devices have it; use --precision fp32 or bf16 on a CPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager:
    """The context of a forward pass: bf16 means convolutions and matrix products; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def keep_fake_quantization_in_float32(model: nn.Module) -> None:
    """Let every observer and fake quantization of a prepared graph see float32, whatever the arithmetic around it.

    Ranges and scales in bfloat16 would be off by up to 0.4 %, half a step at the end of the range.
    """
    for module in model.modules():
        if isinstance(module, FakeQuantize):
            module.register_forward_pre_hook(_to_float32)


def _to_float32(module: nn.Module, inputs: tuple) -> tuple:
    return tuple(each.float() for each in inputs)
