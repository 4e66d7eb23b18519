"""Full float32 on every device, for every process that computes."""

import torch


def use_full_float32() -> None:
    """Rule TF32 out, which cuDNN's convolutions take by default on Ampere and newer GPUs: 10 bits of mantissa for 23.

    A training that is asked for TF32 switches it on again.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
