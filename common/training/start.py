"""What a quantized graph gets before the first step of its training: corrected weights, and ranges."""

import logging
from collections.abc import Iterable

from torch import Tensor, nn
from torch.fx import GraphModule

from common.networks.checkpoints import load_network
from common.quantization.pt2e import IMAGES_SIDE_BY_SIDE, calibrate
from common.quantization.ptq_start import start_from_ptq
from common.training.settings import PTQ, RANGE_IMAGES, QatRunSettings, observed_together
from common.training.task import Task

logger = logging.getLogger(__name__)


def set_out(
    prepared: GraphModule,
    teacher: nn.Module | None,
    input_shape: tuple[int, int, int],
    task: Task,
    settings: QatRunSettings,
) -> None:
    """Let `start_from` change the weights of a prepared graph, and calibrate it, on training images, in place.

    Args:
        prepared: with the FP32 weights of the settings.
        teacher: the network that teaches, in evaluation mode on the same device, if one does; it stays as it is.
        input_shape: (C, H, W) of what the network takes.
    """
    qat, at_once = settings.qat, observed_together(settings)
    count = qat.num_calibration_samples or RANGE_IMAGES

    def drawn(most: int) -> Iterable[Tensor]:
        return task.calibration(min(count, most), at_once, settings)

    if qat.start_from == PTQ:
        logger.info("correcting the FP32 weights: %s", ", ".join(qat.methods.names))
        model = teacher
        if model is None or qat.teacher:  # which has other weights
            model = load_network(qat.name, qat.fp32_model, qat.weights)[0].to(next(prepared.parameters()).device)
        batches = drawn(IMAGES_SIDE_BY_SIDE)
        start_from_ptq(prepared, model, input_shape, qat.quantization, batches, qat.methods)
    calibrate(prepared, drawn(count), qat.methods.ranges)
