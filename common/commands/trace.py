"""A network and its checkpoint to a file of TorchScript or of torch.export."""

import argparse
import copy
import logging

import torch

from common.export.traced_writer import write_exported, write_torchscript
from common.networks.metadata import describe
from common.networks.opening import open_network
from common.runtimes.kinds import TRACED
from common.runtimes.parity import compare, example_inputs, require_agreement
from common.runtimes.predictors import TorchPredictor
from common.runtimes.traced import read_exported, read_torchscript
from common.system.environment import versions
from common.system.files import atomic_path, require_output
from common.system.process import resolve_device, seed_everything
from models.fuse import fuse_upsampling

logger = logging.getLogger(__name__)

FORMATS = {
    "torchscript": (write_torchscript, read_torchscript),
    "exported": (write_exported, read_exported),
}  # of TRACED: how a file is written, and read again


def trace(args: argparse.Namespace) -> None:
    """Write the file, and print how near it comes to the network."""
    seed_everything(args.seed)
    write, read = FORMATS[args.format]
    require_output(args.output_pt_trace_filepath, TRACED[args.format], args.model_checkpoint_path)
    device = resolve_device(args.device)
    source = open_network(args.name, args.model_checkpoint_path, args.input_hw, args.weights)
    input_shape = source.input_shape
    reference = TorchPredictor(source.model, device)
    model = fuse_upsampling(copy.deepcopy(source.model)) if args.fuse else source.model

    logger.info("tracing %s (width %g) with input %s on %s", source.name, source.width, input_shape, device)
    description = describe(source.name, source.network, source.width, "fp32", input_shape, versions())
    with atomic_path(args.output_pt_trace_filepath) as temporary:
        write(model, torch.zeros(2, *input_shape), temporary, description)
        saved = TorchPredictor(read(temporary, device), device)
        agreements = compare(reference, saved, example_inputs(input_shape, args.seed))
        require_agreement(agreements)
    for output, agreement in zip(source.network.outputs or (), agreements, strict=True):
        print(f"{output}: {args.format} against PyTorch: {agreement}")
    print(f"wrote {args.output_pt_trace_filepath} ({args.output_pt_trace_filepath.stat().st_size / 1e6:.2f} MB)")
