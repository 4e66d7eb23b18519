"""The commands of the README are those that run."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.strip() for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if "python " in line]
DEMO = [line.removeprefix("step ") for line in (ROOT / "examples" / "demo.sh").read_text().splitlines()]
DEMO = [line for line in DEMO if line.startswith("python ")]


def words(command):
    return shlex.split(command)


def test_there_are_commands_for_all_scripts():
    used = {word for command in COMMANDS for word in words(command) if word.endswith(".py")}
    assert used >= {path.name for path in ROOT.glob("*.py")}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_flags_that_exist(command):
    python, first, *rest = words(command)
    assert python == "python"
    module = rest.pop(0) if first == "-m" else first.removesuffix(".py")
    importlib.import_module(module).get_args_parser().parse_args(rest)


def test_the_demo_runs_the_commands_of_the_readme():
    assert len(DEMO) == 7
    listed = [words(command) for command in COMMANDS]
    for command in DEMO:
        assert words(command) in listed, command


def test_every_flag_is_in_the_tables():
    for script in ROOT.glob("*.py"):
        parser = importlib.import_module(script.stem).get_args_parser()
        flags = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
        for flag in flags:
            assert f"`{flag}`" in README or flag == "--help", f"{script.name} {flag}"
