"""Settings as frozen dataclasses, nested by subject: as one flat dict for JSON, back from it, and as flags."""

import types
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Settings = TypeVar("Settings")

# metadata of a field, where the way it is written as a flag does not follow from its type
REPEATED = {"flag": "repeated"}  # the flag once for each value
UNREPEATED = {"flag": None}  # of one call alone, not of what it does


def values_of(settings: Any) -> dict[str, Any]:
    """Nested settings as one dict."""
    return {each.name: value for each, value in _leaves(settings)}


def flat(settings: Any) -> dict[str, Any]:
    """Nested settings as one dict of what JSON and a checkpoint can hold: paths become strings."""
    return {name: _plain(value) for name, value in values_of(settings).items()}


def _leaves(settings: Any) -> Iterator[tuple[Field, Any]]:
    """The fields that hold values, with these."""
    for each in fields(settings):
        value = getattr(settings, each.name)
        if is_dataclass(value):
            yield from _leaves(value)
        else:
            yield each, value


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return str(value) if isinstance(value, Path) else value


def from_flat(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Settings of a kind from a flat dict: parsed flags, or what `flat` gave; what is absent there has its default.

    Raises:
        ValueError: a value that is not of its field's type, or that the settings refuse; names the field.
    """
    hints = get_type_hints(kind)
    found = {}
    for each in fields(kind):  # type: ignore[arg-type]
        if is_dataclass(hints[each.name]):
            found[each.name] = from_flat(hints[each.name], values)
        elif each.name in values:
            found[each.name] = _typed(each.name, values[each.name], hints[each.name])
        elif each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"{each.name} is missing")
    return kind(**found)


def _typed(name: str, value: Any, hint: Any) -> Any:
    """`value` as a field of the type `hint` holds it: argparse and JSON have lists for tuples, JSON has no paths."""
    for option in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
        origin, inner = get_origin(option), get_args(option)
        if origin is tuple and isinstance(value, list | tuple) and (inner[-1] is ... or len(inner) == len(value)):
            kinds = inner[:1] * len(value) if inner[-1] is ... else inner
            return tuple(_typed(name, item, kind) for item, kind in zip(value, kinds, strict=True))
        if origin is Literal and value in inner:
            return value
        if option is Path and isinstance(value, str | Path):
            return Path(value)
        if type(value) is option or (option is float and type(value) is int):
            return value
    raise ValueError(f"{name} is {value!r:.60}, wanted {hint.__name__ if isinstance(hint, type) else hint}")


def as_flags(settings: Any, defaults: Any, always: Collection[str] = ()) -> list[str]:
    """The words of a command line that gives these settings to a script with these defaults.

    A field has the name of its flag. Left out are values that are the default's, but for the fields named in `always`,
    and fields that are UNREPEATED.
    """
    usual = flat(defaults)
    words: list[str] = []
    for each, value in _leaves(settings):
        kind = each.metadata.get("flag", "")
        if kind is not None and (each.name in always or _plain(value) != usual[each.name]):
            words += _flag(f"--{each.name}", value, repeated=kind == REPEATED["flag"])
    return words


def _flag(flag: str, value: Any, repeated: bool) -> list[str]:
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if repeated:
        return [word for item in value for word in _words(flag, item)]
    if isinstance(value, tuple) and all(isinstance(item, int) for item in value):  # a height and a width
        return _words(flag, ",".join(map(str, value)))
    if isinstance(value, tuple):
        return [flag, *map(str, value)]
    return [] if value is None else _words(flag, value)


def _words(flag: str, value: object) -> list[str]:
    """With an equals sign where the value would be taken for another flag."""
    return [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]
