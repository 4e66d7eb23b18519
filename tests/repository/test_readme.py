"""The commands of the README and of the pages are those that run."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from docs import flags

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = re.findall(r"```bash\n(.*?)```", "\n".join(page.read_text() for page in PAGES), re.DOTALL)
COMMANDS = [
    line.strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip().startswith("python ")
]
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


def test_the_page_of_flags_is_that_of_the_parsers():
    assert flags.PAGE.read_text() == flags.page(), "stale; write it anew with: python -m docs.flags"


def test_every_flag_is_in_a_test():
    """By its long name; what a test has to say of it is for its author."""
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for script in ROOT.glob("*.py"):
        parser = importlib.import_module(script.stem).get_args_parser()
        offered = {flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")}
        untested = [flag for flag in sorted(offered) if not re.search(rf'["\' ]{flag}["\'= ]', tests)]
        assert untested == [], script.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target
