"""A YAML file as a dataclass: unknown or missing keys and wrong types are errors that name the file."""

import argparse
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from speechgpt.data.files import read_yaml

T = TypeVar("T")


def load_settings(kind: type[T], path: str | Path) -> T:
    """`kind` is a dataclass; the file may hold any of its fields and nothing else.

    Raises ValueError, which names the file, also for what `kind` itself refuses.
    """
    given = read_yaml(path)
    known = {f.name: f for f in fields(kind)}
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{path}: unknown setting {', '.join(unknown)}; known: {', '.join(known)}")
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := sorted(set(needed) - set(given)):
        raise ValueError(f"{path}: missing setting {', '.join(missing)}")
    for name, value in given.items():
        _check_type(name, value, known[name].type, path)
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


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


def _check_type(name: str, value: Any, annotation: Any, path: str | Path) -> None:
    """Checks the plain types only: int, float, str, bool and lists and mappings as containers."""
    wanted = annotation if isinstance(annotation, type) else getattr(annotation, "__origin__", None)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return
    if wanted in (int, float, str, bool, list, dict) and not isinstance(value, wanted):
        raise ValueError(f"{path}: {name} is {value!r}; expected {wanted.__name__}")
    if wanted is int and isinstance(value, bool):
        raise ValueError(f"{path}: {name} is {value!r}; expected int")
