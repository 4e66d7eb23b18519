"""Write docs/flags.md, the table of every script's flags, from the parsers themselves: `python -m docs.flags`."""

import argparse
import importlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "flags.md"
SCRIPTS = (
    "convert_pytorch_to_onnx",
    "trace_pytorch_model",
    "quantize_model_sceneseg",
    "benchmark_qat_model",
    "benchmark_onnx_models",
    "examples.train_sceneseg",
    "examples.make_scenes",
    "examples.picture",
    "examples.prune",
)
OF_THE_MACHINE = {
    "threads": "one a core that the process may use"
}  # defaults that another machine would print differently
HEAD = """# Flags

Made by `python -m docs.flags` from the scripts' parsers; `--help` of each says the same."""


def page() -> str:
    """The whole page: a table for each script, with flag, default and meaning."""
    return "\n\n".join([HEAD, *(_section(script) for script in SCRIPTS)]) + "\n"


def _section(script: str) -> str:
    parser = importlib.import_module(script).get_args_parser()
    called = f"{script}.py" if "." not in script else f"python -m {script}"
    head = [f"## `{called}`", "", parser.description.partition("\n")[0], "", "| flag | default | meaning |"]
    rows = [_row(action) for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    return "\n".join([*head, "|---|---|---|", *rows])


def _row(action: argparse.Action) -> str:
    flags = " ".join(f"`{option}`" for option in action.option_strings)
    meaning = (action.help or "") % {"default": action.default, "prog": "", "metavar": action.metavar}
    if action.choices:
        meaning += f" ({', '.join(map(str, action.choices))})"
    return f"| {flags} | {_default(action)} | {meaning.replace('|', chr(92) + '|')} |"


def _default(action: argparse.Action) -> str:
    if action.required:
        return "required"
    if action.dest in OF_THE_MACHINE:
        return OF_THE_MACHINE[action.dest]
    if isinstance(action.default, bool):
        return "on" if action.default else "off"
    if action.default in (None, argparse.SUPPRESS, []):
        return ""
    values = action.default if isinstance(action.default, list | tuple) else [action.default]
    return f"`{' '.join(map(str, values))}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
