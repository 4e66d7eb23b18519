"""The promises of docs/reliability.md are those that tests show."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROWS = re.findall(
    r"^\| (?!fault|---)(.+) \| (.+) \| `([\w/]+\.py)::(\w+)` \|$", (ROOT / "docs" / "reliability.md").read_text(), re.M
)


def functions_of(name):
    return {node.name for node in ast.walk(ast.parse((ROOT / name).read_text())) if isinstance(node, ast.FunctionDef)}


def test_there_are_enough_promises_and_each_has_its_test():
    assert len(ROWS) >= 60
    for fault, _, file, test in ROWS:
        assert test in functions_of(file), fault


def test_the_lock_holds_every_requirement_with_a_hash():
    wanted = {line.strip().lower() for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line}
    locked = re.findall(r"^(\S+==\S+) --hash=sha256:[0-9a-f]{64}$", (ROOT / "requirements.lock").read_text(), re.M)
    assert wanted <= set(locked)
    assert not re.search(r"https?:|file:/|/opt", (ROOT / "requirements.lock").read_text())
