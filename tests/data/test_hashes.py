"""Hashes that finished runs are known by: another value would train everything again."""

import hashlib
from dataclasses import dataclass

from speechgpt.data.hashes import file_hash, settings_hash, text_hash


@dataclass
class Settings:
    rate: float = 0.5
    steps: int = 3


def test_hashes_stay_what_they_were(tmp_path):
    written = '[{"b": [1, 2.0], "\\u00e9": null}, "x"]'
    assert text_hash({"é": None, "b": [1, 2.0]}, "x") == hashlib.sha256(written.encode()).hexdigest()[:16]
    assert settings_hash(Settings(), "x") == text_hash({"rate": 0.5, "steps": 3}, "x")
    assert settings_hash(Settings(steps=4), leave_out=("steps",)) == text_hash({"rate": 0.5})
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
