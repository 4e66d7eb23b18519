"""Imports go one way: scripts -> common -> models."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
FORBIDDEN = {
    "models": {"common", "examples", "benchmarks", "tests", *SCRIPTS},
    "common": {"examples", "benchmarks", "tests", *SCRIPTS},
    "examples": {"benchmarks", "tests", *SCRIPTS},
    "benchmarks": {"tests", *SCRIPTS},
}


def imported_packages(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_point_downwards(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not imported_packages(path) & FORBIDDEN[package], path


def test_scripts_do_not_import_each_other():
    assert len(SCRIPTS) == 5
    for script in SCRIPTS:
        assert not imported_packages(ROOT / f"{script}.py") & SCRIPTS


def test_quantization_libraries_are_behind_five_modules():
    users = {path.name for path in ROOT.glob("[!.]*/**/*.py") if imported_packages(path) & {"torchao", "executorch"}}
    tests = {path.name for path in (ROOT / "tests").rglob("*.py")}
    assert users - tests == {"pt2e.py", "quantizer.py", "fake_quantize.py", "pte.py", "pte_writer.py"}
