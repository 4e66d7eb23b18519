import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from common.system.settings import REPEATED, UNREPEATED, as_flags, flat, from_flat


@dataclass(frozen=True)
class Place:
    folder: Path = Path("out")
    names: tuple[str, ...] | None = None
    resume: str | None = field(default=None, metadata=UNREPEATED)


@dataclass(frozen=True)
class Work:
    rate: float = 0.1
    parts: int | Literal["auto"] = "auto"
    fuse: bool = True
    skip: bool = False
    size: tuple[int, int] | None = None
    keep: tuple[str, ...] = field(default=(), metadata=REPEATED)


@dataclass(frozen=True)
class All:
    place: Place = field(default_factory=Place)
    work: Work = field(default_factory=Work)


GIVEN = All(
    Place(Path("a b"), ("A", "B"), resume="auto"),
    Work(rate=1, parts=3, fuse=False, skip=True, size=(32, 64), keep=("head", "-x")),
)


def test_settings_become_one_flat_dict_and_come_back_through_json():
    assert flat(GIVEN)["folder"] == "a b"
    assert from_flat(All, flat(GIVEN)) == GIVEN
    assert from_flat(All, json.loads(json.dumps(flat(GIVEN)))) == GIVEN


def test_what_is_absent_has_its_default_and_other_keys_are_left_alone():
    assert from_flat(All, {"rate": 2.0, "colour": "red"}) == All(work=Work(rate=2.0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate", "0.1"),
        ("rate", True),
        ("parts", "all"),
        ("parts", 1.5),
        ("fuse", 1),
        ("size", (1, 2, 3)),
        ("size", ("a", "b")),
        ("names", "AB"),
        ("folder", 7),
        ("folder", None),
        ("keep", [b"x"]),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} is "):
        from_flat(All, {name: value})


def test_flags_say_what_differs_from_the_defaults():
    assert as_flags(All(), All()) == []
    assert as_flags(All(), All(), always=["folder"]) == ["--folder", "out"]
    assert as_flags(GIVEN, All()) == [
        *("--folder", "a b", "--names", "A", "B"),
        *("--rate", "1", "--parts", "3", "--no-fuse", "--skip", "--size", "32,64", "--keep", "head", "--keep=-x"),
    ]
    usual = replace(GIVEN, work=replace(GIVEN.work, fuse=True))
    assert as_flags(GIVEN, usual) == ["--no-fuse"]
