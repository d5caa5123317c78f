"""What YAML gives and what a dataclass takes."""

import argparse
from dataclasses import dataclass, field
from typing import Any, Optional

import pytest

from speechgpt.data.settings import load_settings, parse_with_settings, settings_from


@dataclass
class Part:
    gain: float = 1.0
    low: int = 0
    high: int = 9

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")


@dataclass
class Whole:
    size: int
    name: str = "x"
    flag: bool = False
    rate: float = 0.5
    rates: list[float] = field(default_factory=list)
    grid: list[list[int]] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)
    counts: int | dict[str, int] = 1
    written: int | float = 0.0
    limit: int | None = None
    note: Optional[str] = "none"  # noqa: UP045  the older way of writing it
    span: tuple[float, float] = (0.0, 1.0)
    words: tuple[str, ...] = ()
    pair: tuple = ()
    bare: list = field(default_factory=list)
    other: dict = field(default_factory=dict)
    free: Any = None
    quoted: "float" = 2.0  # what all annotations are under `from __future__ import annotations`
    part: Part = field(default_factory=Part)
    maybe: Part | None = None
    parts: list[Part] = field(default_factory=list)
    named: dict[str, Part] = field(default_factory=dict)


def load(tmp_path, text: str, kind: type = Whole):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return load_settings(kind, path)


def refusal(tmp_path, text: str, kind: type = Whole) -> str:
    """The message without the file's name, which stands at its beginning and nowhere else."""
    with pytest.raises(ValueError) as error:
        load(tmp_path, text, kind)
    before, name, message = str(error.value).rpartition(f"{tmp_path / 'settings.yaml'}: ")
    assert name and not before
    return message


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("rate: 5e-4", 5e-4),  # YAML reads text
        ("rate: -1E+2", -100.0),
        ("rate: 1.5e3", 1500.0),
        ("rate: .5e1", 5.0),
        ("rate: 3", 3.0),
        ("rate: .inf", float("inf")),
        ("rates: [1, 0.5, 1e-3]", [1.0, 0.5, 1e-3]),
        ("grid: [[1, 2], []]", [[1, 2], []]),
        ("shares: {a: 1, b: 2e-1}", {"a": 1.0, "b": 0.2}),
        ("counts: 3", 3),
        ("counts: {a: 2}", {"a": 2}),
        ("written: 3", 3),
        ("written: 3.0", 3.0),
        ("written: 3e1", 30.0),
        ("limit: 4", 4),
        ("limit:", None),
        ("note: null", None),
        ("span: [0, 2e1]", (0.0, 20.0)),
        ("words: [a, b]", ("a", "b")),
        ("pair: [1, x]", (1, "x")),
        ("bare: [1, x]", [1, "x"]),
        ("other: {1: x}", {1: "x"}),
        ("free: [1, {a: null}]", [1, {"a": None}]),
        ("quoted: 1e-5", 1e-5),
        ("flag: yes", True),
        ("part: {gain: 2}", Part(2.0)),
        ("part: {}", Part()),
        ("maybe: {low: 1}", Part(low=1)),
        ("maybe: ~", None),
        ("parts: [{low: 1}, {}]", [Part(low=1), Part()]),
        ("named: {a: {high: 3}}", {"a": Part(high=3)}),
    ],
)
def test_values_become_what_the_annotation_says(tmp_path, line, value):
    found = getattr(load(tmp_path, f"size: 1\n{line}\n"), line.split(":")[0])
    assert found == value and repr(found) == repr(value)  # 3 is no 3.0: a hash of the settings tells


PART = "a mapping of gain, low, high"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("size: x", "size: expected int, found 'x'"),
        ("size: true", "size: expected int, found True"),
        ("size: 1.0", "size: expected int, found 1.0"),
        ("size: '1'", "size: expected int, found '1'"),
        ("size: 1e3", "size: expected int, found '1e3'"),
        ("size:", "size: expected int, found None"),
        ("size: [1]", "size: expected int, found [1]"),
        ("name: 7", "name: expected str, found 7"),
        ("name: no", "name: expected str, found False"),
        ("name: 2020-01-02", "name: expected str, found datetime.date(2020, 1, 2)"),
        ("flag: 1", "flag: expected bool, found 1"),
        ("flag: 'yes'", "flag: expected bool, found 'yes'"),
        ("rate: fast", "rate: expected float, found 'fast'"),
        ("rate: nan", "rate: expected float, found 'nan'"),
        ("rate: '0.5'", "rate: expected float, found '0.5'"),
        ("rate: 1e999", "rate: expected float, found '1e999'"),
        ("rate: false", "rate: expected float, found False"),
        ("rate: null", "rate: expected float, found None"),
        ("rates: 1e-3", "rates: expected a list of float, found '1e-3'"),
        ("rates: [1, x, null]", "rates[1]: expected float, found 'x'; rates[2]: expected float, found None"),
        (
            "grid: [[1], 2, [a]]",
            "grid[1]: expected a list of int, found 2; grid[2][0]: expected int, found 'a'",
        ),
        ("shares: [1]", "shares: expected a mapping of str to float, found [1]"),
        ("shares: {a: b, 7: 1}", "shares: name: expected str, found 7; shares.a: expected float, found 'b'"),
        ("counts: many", "counts: expected int or a mapping of str to int, found 'many'"),
        ("counts: {a: many}", "counts.a: expected int, found 'many'"),
        ("written: x", "written: expected int or float, found 'x'"),
        ("written: true", "written: expected int or float, found True"),
        ("limit: x", "limit: expected int, found 'x'"),
        ("note: 3", "note: expected str, found 3"),
        ("span: [1]", "span: expected 2 values, found [1]"),
        ("span: 1", "span: expected a list of float, float, found 1"),
        ("words: [a, 2]", "words[1]: expected str, found 2"),
        ("pair: 3", "pair: expected a list, found 3"),
        ("bare: a", "bare: expected a list, found 'a'"),
        ("other: []", "other: expected a mapping, found []"),
        ("quoted: x", "quoted: expected float, found 'x'"),
        ("part: 3", f"part: expected {PART}, found 3"),
        ("part:", f"part: expected {PART}, found None"),
        ("part: [gain]", f"part: expected {PART}, found ['gain']"),
        ("maybe: 3", f"maybe: expected {PART}, found 3"),
        ("maybe: {low: x}", "maybe.low: expected int, found 'x'"),
        ("parts: {low: 1}", f"parts: expected a list of {PART}, found {{'low': 1}}"),
        ("parts: [3]", f"parts[0]: expected {PART}, found 3"),
        ("part: {low: 10}", "part: low 10 is above high 9"),
        ("parts: [{}, {low: 10}]", "parts[1]: low 10 is above high 9"),
        ("named: {a: {low: 10}}", "named.a: low 10 is above high 9"),
        ("part: {lows: 1}", "unknown setting part.lows; known in part: gain, low, high"),
    ],
)
def test_another_value_is_refused_by_its_name(tmp_path, line, message):
    text = line if line.startswith("size") else f"size: 1\n{line}"
    assert refusal(tmp_path, text) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping of settings, found nothing"),
        ("# all of it is a comment\n", "expected a mapping of settings, found nothing"),
        ("- low: 1\n", "expected a mapping of settings, found list"),
        ("low\n", "expected a mapping of settings, found str"),
        ("gain: 2001-02-30\n", "not valid YAML (day is out of range for month)"),
        ("low: " + "[" * 3000, "YAML nested too deep to be read"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, message):
    assert refusal(tmp_path, text, Part) == message


def test_broken_yaml_and_a_missing_file_are_named(tmp_path):
    assert refusal(tmp_path, "a: [1\n", Part).startswith("not valid YAML (")
    assert refusal(tmp_path, "low: " + "9" * 5000, Part).startswith("not valid YAML (")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml: no such config file"):
        load_settings(Part, tmp_path / "nowhere.yaml")


def test_numbers_past_a_float_and_long_values_are_refused_in_few_words(tmp_path):
    assert refusal(tmp_path, "gain: " + "9" * 400, Part).startswith("gain: expected float, found 999")
    assert len(refusal(tmp_path, "low: " + "x" * 5000, Part)) < 300


def test_all_faults_are_listed_and_unknown_names_in_order(tmp_path):
    @dataclass
    class Two:
        first: int
        second: int
        part: Part = field(default_factory=Part)
        third: int = 3

    text = "zebra: 1\n7: 1\nant: 1\nthird: x\npart: {low: 10, high: 3}\n"
    said = (
        "unknown setting 7, ant, zebra; known: first, second, part, third; missing setting first, second; "
        "part: low 10 is above high 3; third: expected int, found 'x'"
    )
    assert refusal(tmp_path, text, Two) == said
    text = "first: 1\nsecond: 2\npart: {low: x, zebra: 1, ant: 1}\n"
    said = "unknown setting part.ant, part.zebra; known in part: gain, low, high; "
    said += "part.low: expected int, found 'x'"
    assert refusal(tmp_path, text, Two) == said


def test_what_the_class_refuses_is_refused_in_its_words(tmp_path):
    assert refusal(tmp_path, "low: 10\n", Part) == "low 10 is above high 9"
    assert load(tmp_path, "low: 9\n", Part) == Part(low=9)


def test_defaults_of_a_factory_are_not_shared(tmp_path):
    first, second = (load(tmp_path, "size: 1\n") for _ in range(2))
    first.rates.append(1.0)
    assert second.rates == [] and first.part is not second.part


def test_a_mapping_that_was_read_elsewhere_is_checked_alike():
    assert settings_from(Part, {"gain": "1e1"}, "lora") == Part(10.0)
    with pytest.raises(ValueError, match="^unknown setting lora.rank; known in lora: gain, low, high$"):
        settings_from(Part, {"rank": 1}, "lora")
    with pytest.raises(ValueError, match="^lora: expected a mapping of gain, low, high, found 3$"):
        settings_from(Part, 3, "lora")
    assert settings_from(dict[str, Part], {"a": {}}) == {"a": Part()}


def test_options_come_before_the_file_and_the_file_before_their_defaults(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("low: 2\ngain: 1e-1\n")

    def parse(*argv: str) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        parser.add_argument("--low", type=int, default=1)
        parser.add_argument("--gain", type=float)
        return parse_with_settings(parser, Part, list(argv))

    assert parse().low == 1
    found = parse("--config", str(path), "--low", "3")
    assert (found.low, found.gain) == (3, 0.1)
    path.write_text("low: 10\n")
    with pytest.raises(ValueError, match=r"settings\.yaml: low 10 is above high 9"):
        parse("--config", str(path))
