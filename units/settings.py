"""YAML files to typed settings: nested dataclasses, unknown keys named beside the known ones."""

import hashlib
import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from speechgpt.data.files import read_yaml

T = TypeVar("T")


def load_settings(kind: type[T], path: str | Path) -> T:
    """Reads a YAML file into the dataclass `kind`; every problem of the file is listed in one ValueError."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such config file")
    issues: list[str] = []
    value = _build(kind, read_yaml(path), "", issues)
    if issues:
        raise ValueError(f"{path}: " + "; ".join(issues))
    return value


def text_hash(*values: Any) -> str:
    """A short hash of values that JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def settings_hash(value: Any, *more: Any, leave_out: tuple[str, ...] = ()) -> str:
    """A short hash of a dataclass, without the fields named, and of whatever else decides the result."""
    return text_hash({name: v for name, v in asdict(value).items() if name not in leave_out}, *more)


def file_hash(path: str | Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build(kind: type, values: Mapping, where: str, issues: list[str]) -> Any:
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    for name in values.keys() - known.keys():
        issues.append(f"unknown setting {where}{name}; known here: {', '.join(known)}")
    given = {}
    for name, field in known.items():
        if name in values:
            given[name] = _convert(hints[name], values[name], f"{where}{name}", issues)
        elif field.default is MISSING and field.default_factory is MISSING:
            issues.append(f"missing setting {where}{name}")
    if issues:
        return None
    try:
        return kind(**given)
    except ValueError as error:  # the dataclass checks its own ranges
        issues.append(f"{where}{error}")
        return None


def _convert(kind: Any, value: Any, where: str, issues: list[str]) -> Any:
    if is_dataclass(kind) and isinstance(value, Mapping):
        return _build(kind, value, where + ".", issues)
    if get_origin(kind) in (Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(k for k in get_args(kind) if k is not type(None)), value, where, issues)
    if get_origin(kind) is list and isinstance(value, list):
        (inner,) = get_args(kind)
        return [_convert(inner, v, f"{where}[{i}]", issues) for i, v in enumerate(value)]
    plain = get_origin(kind) or kind
    if plain is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:  # YAML reads 5e-4 as text
            return float(value)
        except ValueError:
            pass
    if plain is Any or isinstance(value, plain) and not (plain is int and isinstance(value, bool)):
        return value
    expected = (
        f"the settings {', '.join(f.name for f in fields(kind))}" if is_dataclass(kind) else plain.__name__
    )
    issues.append(f"{where}: expected {expected}, found {value!r}")
    return None
