"""The flags that several scripts share."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from common.cli.types import height_width, non_negative_int, thread_count
from common.system.processors import physical_processors

IMAGE_BITS = range(8, 17)  # of data that a 16-bit image may hold
Check = Callable[[argparse.Namespace, argparse.ArgumentParser], None]


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keep the example's line breaks, show every default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        hidden = action.default is None or action.default is False or action.required
        return action.help if hidden else super()._get_help_string(action)


class ListNetworks(argparse.Action):
    """`--list`: print the table of the networks and leave, whatever else is on the command line."""

    def __init__(self, option_strings: list[str], dest: str, **options: object):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="list the networks and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from common.networks.opening import network_table  # here, as common/cli/main.py says

        print(network_table())
        parser.exit()


class CheckedParser(argparse.ArgumentParser):
    """A parser that also knows which flags do not go together: `check` leaves by its `error`, with exit code 2."""

    check: Check | None = None

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As that of argparse."""
        parsed = super().parse_args(args, namespace)
        if self.check:
            self.check(parsed, self)
        return parsed


def make_parser(description: str, example: str, check: Check | None = None) -> argparse.ArgumentParser:
    """A parser with the script's docstring, an example to copy, and the flags that every script has.

    Args:
        check: of the flags that were parsed, takes them and the parser; ends by `parser.error` where they are wrong.
    """
    parser = CheckedParser(
        description=description, epilog=f"example:\n  {example}", formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.check = check
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where PyTorch computes")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="seed of every random choice")
    parser.add_argument(
        "--threads", type=thread_count, default=physical_processors(), help="CPU threads of each runtime"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Which network, its weights and its input size; and the list of what there is."""
    add_name_argument(parser)
    parser.add_argument(
        "-p",
        "--model_checkpoint_path",
        required=True,
        type=Path,
        metavar="CKPT",
        help="its FP32 weights (.pth, .safetensors)",
    )
    add_weights_argument(parser)
    add_input_size_argument(parser)
    add_fuse_argument(parser)
    parser.add_argument("--list", action=ListNetworks)


def add_weights_argument(parser: argparse.ArgumentParser) -> None:
    """`--weights`, where a checkpoint holds more than one set."""
    parser.add_argument(
        "--weights",
        metavar="raw|ema|NAME",
        help="which weights of a checkpoint that holds several: raw, averaged (ema), or those under a name in it",
    )


def add_name_argument(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """`-n`, the network of the family or a user's own; only what it names is ever imported."""
    parser.add_argument(
        "-n",
        "--name",
        required=default is None,
        default=default,
        metavar="NETWORK",
        help="network: of the family (--list of convert_pytorch_to_onnx.py), or your own as MODULE:ATTRIBUTE",
    )


def add_input_size_argument(parser: argparse.ArgumentParser) -> None:
    """`--input_hw`: a checkpoint knows its input size, so that the flag is for another one."""
    parser.add_argument(
        "--input_hw", type=height_width, metavar="H,W", help="input size; default: the checkpoint's own"
    )


def add_fuse_argument(parser: argparse.ArgumentParser) -> None:
    """`--fuse`, on by default: the same numbers in less time, for a file that is 5 % larger."""
    parser.add_argument(
        "--fuse",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fuse each upsampling stage into one convolution: exact, and up to 37 %% fewer operations",
    )


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """`--datasets` and `--workers`; the data root has another name in each of the original scripts."""
    parser.add_argument(
        "--datasets",
        nargs="+",
        metavar="NAME",
        help="datasets below the root, also your own (ROOT/NAME/NAME/{images,gt_masks}; other labels: docs/data.md); "
        "default: all that are found",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="JSON",
        help="what the masks hold, for all datasets; default: each dataset's labels.json, or the network's palette",
    )
    parser.add_argument("--workers", type=non_negative_int, default=2, help="processes that decode images")
    add_image_bits_argument(parser)
    parser.add_argument(
        "--skip_bad", action="store_true", help="read every sample once first; leave bad ones out and list them"
    )


def add_images_argument(parser: argparse._ActionsContainer, what: str) -> None:
    """`--images`, in the place of a data root."""
    parser.add_argument(
        "--images",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help=f"instead: images without masks, PNG and JPEG, however deep; {what}",
    )


def add_egolanes_argument(parser: argparse.ArgumentParser, when: str) -> None:
    """`--egolanes_checkpoint`, for a network that takes another one's outputs."""
    parser.add_argument(
        "--egolanes_checkpoint", type=Path, metavar="CKPT", help=f"AutoSteer {when}: makes its inputs of the images"
    )


def refuse_with_images(args: argparse.Namespace, parser: argparse.ArgumentParser, flags: Iterable[str]) -> None:
    """Leave with exit code 2 where `--images` stands with one of `flags`, which are of data with masks."""
    for name in flags if args.images else ():
        if getattr(args, name):
            parser.error(f"argument --{name}: not allowed with argument --images, which has no masks")


def refuse_with_class_maps(args: argparse.Namespace, parser: argparse.ArgumentParser, flags: Iterable[str]) -> None:
    """Leave with exit code 2 where data with masks of classes stands with one of `flags`, which are of other data."""
    for name in flags:
        if getattr(args, name):
            parser.error(f"argument --{name}: is for --images, or for labels that are no masks of classes")


def add_image_bits_argument(parser: argparse.ArgumentParser) -> None:
    """`--image_bits`, which images of 16 bits a value do not say of themselves."""
    parser.add_argument(
        "--image_bits",
        type=int,
        choices=IMAGE_BITS,
        metavar="N",
        help="bits of data in images stored with 16, 8 to 16; default: 16, where the images show it",
    )


def plain_arguments(args: argparse.Namespace) -> dict[str, object]:
    """The flags as JSON and a checkpoint can hold them: paths become strings."""
    return {key: _plain(value) for key, value in vars(args).items()}


def _plain(value: object) -> object:
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return str(value) if isinstance(value, Path) else value
