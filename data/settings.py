"""YAML files as dataclasses, nested ones too: every fault is listed in one error that names the file."""

import argparse
import math
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from speechgpt.data.files import one_line, read_yaml

EXPONENT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")  # what YAML takes for text
LONGEST_FOUND = 200  # characters of a wrong value in a message

T = TypeVar("T")


def load_settings(kind: type[T], path: str | Path) -> T:
    """`kind` is a dataclass; the file may hold any of its fields and nothing else.

    Raises ValueError, which names the file once, for all that `settings_from` refuses.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such config file")
    values = read_yaml(path)
    try:
        return settings_from(kind, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def settings_from(kind: type[T], values: Any, where: str = "") -> T:
    """What was read as the dataclass `kind`, or dict or list of such; `where` is its name in messages.

    Numbers become what their fields are: a float may be written 3, or 5e-4, which YAML reads as text. Raises
    one ValueError for all names that are unknown or missing, all values of a wrong type, and for what `kind`,
    or a dataclass in it, refuses itself; of these last, those whose own fields are in order are heard.
    """
    faults: list[str] = []
    value = _convert(kind, values, where, faults)
    if faults:
        raise ValueError("; ".join(faults))
    return value


def parse_with_settings(parser: argparse.ArgumentParser, kind: type, argv: list[str]) -> argparse.Namespace:
    """Parses `argv` with one option more, --config FILE, whose settings are the defaults of their options."""
    parser.add_argument("--config", help="YAML of " + ", ".join(f.name for f in fields(kind)))
    quiet = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    quiet.add_argument("--config")
    path = quiet.parse_known_args(argv)[0].config
    parser.allow_abbrev = False  # or --conf would be taken for --config after the settings were read
    if path:
        parser.set_defaults(**vars(load_settings(kind, path)))
    return parser.parse_args(argv)


def _build(kind: type, values: Mapping, where: str, faults: list[str]) -> Any:
    hints = get_type_hints(kind)  # not the fields' own types, which are text in a module with __future__'s
    known = {f.name: f for f in fields(kind)}
    inside = f"{where}." if where else ""
    mine: list[str] = []
    if unknown := sorted(f"{inside}{name}" for name in values if name not in known):
        place = f" in {where}" if where else ""
        mine.append(f"unknown setting {', '.join(unknown)}; known{place}: {', '.join(known)}")
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [f"{inside}{name}" for name in needed if name not in values]:
        mine.append(f"missing setting {', '.join(missing)}")
    given = {n: _convert(hints[n], values[n], f"{inside}{n}", mine) for n in known if n in values}
    if not mine:
        try:
            return kind(**given)
        except ValueError as error:  # the dataclass checks its own ranges
            mine.append(f"{where}: {error}" if where else str(error))
    faults += mine
    return None


def _convert(kind: Any, value: Any, where: str, faults: list[str]) -> Any:
    """`value` as what the annotation `kind` says; None, and a fault more, where it is not that."""
    plain, inner = get_origin(kind) or kind, get_args(kind)
    if plain in (Union, types.UnionType):
        return _convert_union(inner, value, where, faults)
    if is_dataclass(plain) and isinstance(value, Mapping):
        return _build(plain, value, where, faults)
    if plain is list and inner and isinstance(value, list):
        return [_convert(inner[0], v, f"{where}[{i}]", faults) for i, v in enumerate(value)]
    if plain is tuple and isinstance(value, list | tuple):
        return _convert_tuple(inner, value, where, faults)
    if plain is dict and inner and isinstance(value, dict):
        for name in value:
            _convert(inner[0], name, f"{where}: name", faults)
        return {name: _convert(inner[1], v, f"{where}.{name}", faults) for name, v in value.items()}
    if plain is float and (number := _as_float(value)) is not None:
        return number
    if plain is Any or isinstance(value, plain) and not (plain is int and isinstance(value, bool)):
        return value
    return _fault(faults, where, _named(kind), value)


def _fault(faults: list[str], where: str, expected: str, value: Any) -> None:
    found = f"expected {expected}, found {one_line(repr(value), LONGEST_FOUND)}"
    faults.append(f"{where}: {found}" if where else found)


def _convert_union(kinds: tuple, value: Any, where: str, faults: list[str]) -> Any:
    """As the one that it is already, else as the first that takes it."""
    for kind in kinds:
        if type(value) is (get_origin(kind) or kind):
            return _convert(kind, value, where, faults)
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    for kind in kinds:
        mine: list[str] = []
        converted = _convert(kind, value, where, mine)
        if not mine:
            return converted
    if len(kinds) > 1:
        return _fault(faults, where, " or ".join(map(_named, kinds)), value)
    faults += mine
    return None


def _convert_tuple(kinds: tuple, value: list | tuple, where: str, faults: list[str]) -> Any:
    """YAML has lists alone."""
    if not kinds:
        return tuple(value)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        return _fault(faults, where, f"{len(kinds)} values", value)
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(_convert(kind, v, f"{where}[{i}]", faults) for i, (kind, v) in pairs)


def _as_float(value: Any) -> float | None:
    """None where it is no number. Of text only 5e-4 and its like is one: quotes are there for a reason."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and not EXPONENT.fullmatch(value):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if isinstance(value, float) or math.isfinite(number) else None


def _named(kind: Any) -> str:
    plain, inner = get_origin(kind) or kind, get_args(kind)
    if is_dataclass(plain):
        return f"a mapping of {', '.join(f.name for f in fields(plain))}"
    if plain in (list, tuple):
        kinds = [_named(one) for one in inner if one is not Ellipsis]
        return f"a list of {', '.join(kinds)}" if kinds else "a list"
    if plain is dict:
        return f"a mapping of {_named(inner[0])} to {_named(inner[1])}" if inner else "a mapping"
    if plain in (Union, types.UnionType):
        return " or ".join(map(_named, inner))
    return "null" if plain is type(None) else getattr(plain, "__name__", str(plain))
