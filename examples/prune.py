"""Leave out the channels of a network that count least, until a share of its operations is left; write FP32 weights."""

import argparse
import copy
import fnmatch
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from common.cli.flags import (
    add_egolanes_argument,
    add_image_bits_argument,
    add_network_arguments,
    make_parser,
    plain_arguments,
)
from common.cli.main import run
from common.cli.types import fraction, positive_int
from common.export.calibration import folder_images
from common.networks.checkpoints import save_checkpoint
from common.networks.opening import OpenedNetwork, open_network
from common.pruning.channels import find_blocks
from common.pruning.importance import distances_without, ranks_by_weights
from common.pruning.plan import Costs, Plan, choose
from common.pruning.pruned import described
from common.pruning.slicing import without_channels
from common.runtimes.parity import compare
from common.runtimes.predictors import TorchPredictor
from common.system.environment import versions
from common.system.files import require_output
from common.system.markdown import table
from common.system.process import resolve_device, seed_everything


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        __doc__,
        "python -m examples.prune -n SceneSeg -p SceneSeg.pth -o pruned.pth --keep_gflop 0.5 --only neck --only head "
        "--images drives/",
    )
    add_network_arguments(parser)
    parser.add_argument(
        "-o", "--pruned_checkpoint_path", required=True, type=Path, metavar="OUT.pth", help="file to write"
    )
    parser.add_argument(
        "--keep_gflop", required=True, type=fraction, metavar="SHARE", help="of the operations, that is kept at most"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="PATTERN",
        help="prune modules of this name, as neck or 'neck.stages.*', and count their operations; may be repeated; "
        "default: the whole network",
    )
    parser.add_argument(
        "--channel_multiple", type=positive_int, default=8, metavar="N", help="channels that a pruned layer has"
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="find on these images, however deep, what each channel counts; default: by the weights alone",
    )
    parser.add_argument("--num_images", type=positive_int, default=64, help="of --images, that are used for it")
    add_image_bits_argument(parser)
    add_egolanes_argument(parser, "with --images")
    return parser


def main(args: argparse.Namespace) -> None:
    seed_everything(args.seed)
    device = resolve_device(args.device)
    path, only = args.pruned_checkpoint_path, tuple(args.only or ("*",))
    require_output(path, ".pth", args.model_checkpoint_path)
    source = open_network(args.name, args.model_checkpoint_path, args.input_hw, args.weights)
    model = source.model.to(device)
    require_modules(model, only)
    used, held_out = images_of(args, source)
    blocks = [block for block in find_blocks(model, source.input_shape) if block.is_in(only)]
    if used:
        inputs = [image.to(device) for image in used]
        scores = distances_without(model, source.network, blocks, inputs, args.seed)
    else:
        scores = [ranks_by_weights(model, block) for block in blocks]
    costs = Costs(source.input_shape, only, args.fuse)
    found = dict(zip(blocks, scores, strict=True))
    plan = choose(model, found, costs, args.keep_gflop, args.channel_multiple, by_cost=bool(used))
    pruned = described(source, without_channels(model, plan.removed), path)
    save_checkpoint(
        path, pruned.state, replace(pruned.description, arguments=plain_arguments(args), versions=versions())
    )
    print(summary(plan))
    print(sizes(model, pruned.model, costs, plan))
    if held_out:
        reference, candidate = TorchPredictor(model, device), TorchPredictor(pruned.model, device)
        agreements = compare(reference, candidate, held_out, source.network.kinds_of)
        for name, agreement in zip(source.network.outputs or (), agreements, strict=True):
            print(f"{name}: pruned against whole, before training: {agreement}")
    print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")


def require_modules(model: nn.Module, patterns: Sequence[str]) -> None:
    """Raise ValueError for a pattern of no module."""
    names = [name for name, _ in model.named_modules()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            known = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"--only {pattern}: matches no module; the network's largest are {known}")


def images_of(args: argparse.Namespace, source: OpenedNetwork) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs (1, C, H, W) from `--images` to score channels on, and others to compare on; none without the flag."""
    if args.images is None:
        for name in ("image_bits", "egolanes_checkpoint"):
            if getattr(args, name):
                get_args_parser().error(f"argument --{name}: is for --images")
        return [], []
    images = folder_images(
        source, args.images, args.num_images, args.seed, args.egolanes_checkpoint, args.image_bits, args.weights
    )
    return images.to_calibrate(), images.to_judge()


def summary(plan: Plan) -> str:
    """Each block of channels that has become smaller."""
    return table(
        [
            {"channels of": block, "before": block.size, "after": block.size - len(channels)}
            for block, channels in plan.removed.items()
        ]
    )


def sizes(model: nn.Module, pruned: nn.Module, costs: Costs, plan: Plan) -> str:
    """Operations of what was pruned and of all, and parameters."""
    whole = replace(costs, only=("*",))
    pairs = {
        "GFLOP of the part": (plan.before / 1e9, plan.after / 1e9),
        "GFLOP": tuple(whole.operations(copy.deepcopy(each).to("meta")) / 1e9 for each in (model, pruned)),
        "M parameters": tuple(sum(each.numel() for each in net.parameters()) / 1e6 for net in (model, pruned)),
    }
    return table(
        [
            {"": what, "before": f"{before:.3f}", "after": f"{after:.3f}", "kept": f"{after / before:.3f}"}
            for what, (before, after) in pairs.items()
        ]
    )


if __name__ == "__main__":
    run(main, get_args_parser())
