"""Hashes that say whether a result is still the one of these values, these settings, this file."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any


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
