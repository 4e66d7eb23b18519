"""The flags that say which runtime a file is for, and the check of a file that is there."""

import argparse
from pathlib import Path
from typing import Any

from common.runtimes.targets import DEFAULT_TARGET, TARGETS, check_file

BESIDE_CHECK = ("help", "list", "check", "target", "device", "seed", "threads", "debug")


class CheckFile(argparse.Action):
    """`--check FILE`: beside it the flags of a conversion are not required, and not allowed."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, *_: object) -> None:
        setattr(namespace, self.dest, value)
        for action in parser._actions:
            action.required = False


def add_target_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """`--target`, one of TARGETS; None where it is not given."""
    parser.add_argument("--target", choices=tuple(TARGETS), help=f"runtime that {what}; default: {DEFAULT_TARGET}")


def add_check_argument(parser: argparse.ArgumentParser) -> None:
    """`--check FILE.onnx`, in the place of a conversion."""
    parser.add_argument(
        "--check",
        action=CheckFile,
        type=Path,
        metavar="FILE.onnx",
        help="instead: list the nodes of this ONNX file that break rules of --target",
    )


def check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """List what `--check` finds; ValueError, and with it exit code 1, where there is anything."""
    for action in parser._actions:
        if action.dest not in BESIDE_CHECK and getattr(args, action.dest) != action.default:
            parser.error(f"argument {'/'.join(action.option_strings)}: not allowed with argument --check")
    target = args.target or DEFAULT_TARGET
    wrong, title = check_file(args.check, target), TARGETS[target].title
    print(*wrong, sep="\n") if wrong else print(f"{args.check}: keeps all rules of {title}")
    if wrong:
        raise ValueError(f"{args.check}: breaks {len(wrong)} rules of {title}; they are listed above")
