"""Unit selection: what is said holds the phones asked for, in frames of the recordings, and no others."""

import json
import re
from itertools import pairwise

import numpy as np
import pytest

from speechgpt.data.rows import UnitRow, Utterance, read_units, write_manifest, write_units
from speechgpt.units.dedup import deduplicate, expand
from speechgpt.units.phones import phone_labels
from speechgpt.units.unit_selection import (
    Donor,
    Inventory,
    SelectionConfig,
    donor,
    main,
    read_inventories,
    say_rows,
)

HOP, FIELD, RATE = 320, 400, 16_000
NAMES = ["SIL", "HH", "AH", "L", "OW", "W", "ER", "D"]


def phones_of(names: list[str], frames: list[int]) -> list[list]:
    """Each phone under so many frames' centres."""
    ends = np.cumsum(frames)
    return [
        [name, float((end * HOP + FIELD / 2 - HOP / 2) / RATE)] for name, end in zip(names, ends, strict=True)
    ]


def recording(number: int, names: list[str], frames: list[int], corpus: str = "people", split: str = "train"):
    """A recording whose units say what they are: 100 * recording + place of the phone; and its utterance."""
    units = np.repeat(100 * number + np.arange(len(names)), frames)
    row = UnitRow(f"r{number}", *(x.tolist() for x in deduplicate(units)), "", corpus, "", split)
    end = phones_of(names, frames)
    return row, Utterance(row.id, "x.wav", end[-1][1], "", corpus, "", split, phones=end)


def inventory(*recordings) -> Inventory:
    return Inventory([donor(row, utterance.phones, HOP) for row, utterance in recordings])


def test_a_donors_phones_lie_where_the_labels_of_training_say():
    rng = np.random.default_rng(0)
    for _ in range(20):
        names = [str(n) for n in rng.choice(NAMES, 12)]
        frames = rng.integers(0, 6, 12)
        frames[-1] += 1
        phones = phones_of(names, frames.tolist())
        shift = rng.uniform(-0.009, 0.009, len(phones))
        phones = [[name, max(0.0, end + d)] for (name, end), d in zip(phones, shift, strict=True)]
        phones = [
            [name, float(end)]
            for (name, _), end in zip(phones, np.maximum.accumulate([e for _, e in phones]), strict=True)
        ]
        count = int(frames.sum())
        labels = phone_labels(phones, count, HOP, FIELD, RATE, 1)
        units = np.arange(count) % 50
        one = donor(UnitRow("a", *(x.tolist() for x in deduplicate(units))), phones, HOP)
        found = np.repeat(np.arange(len(names)), np.diff(one.bounds))
        numbers = phone_labels([[n, i + 1.0] for i, n in enumerate(names)], 1, HOP, FIELD, RATE, 1)
        assert len(numbers) == 1 and len(found) == count
        per_name = {n: phone_labels([[n, 9.0]], 1, HOP, FIELD, RATE, 1)[0] for n in NAMES}
        assert [per_name[names[i]] for i in found] == labels.tolist()
        assert (one.frames == units).all()


def test_a_whole_recording_can_be_said_again_as_it_was():
    row, utterance = recording(1, NAMES, [4, 2, 3, 5, 2, 1, 6, 3])
    config = SelectionConfig({"people": 1}, ["*"], shortest=20, longest=20)
    frames = inventory((row, utterance)).say(NAMES, config, np.random.default_rng(0))
    assert frames.tolist() == expand(row.units, row.durations).tolist()


def test_runs_are_joined_in_the_middle_of_the_phone_that_they_share():
    left, right = recording(1, ["SIL", "HH", "AH"], [2, 2, 6]), recording(2, ["AH", "L", "OW"], [4, 3, 2])
    config = SelectionConfig({"people": 1}, ["*"], shortest=6, longest=6)
    frames = inventory(left, right).say(["SIL", "HH", "AH", "L", "OW"], config, np.random.default_rng(0))
    # Three of the first recording's six frames of AH, then two of the second's four.
    assert frames.tolist() == [100, 100, 101, 101, 102, 102, 102, 200, 200, 201, 201, 201, 202, 202]


def test_where_no_recording_has_two_phones_in_a_row_they_meet_at_their_border():
    first, second = recording(1, ["AH"], [4]), recording(2, ["L", "OW"], [3, 2])
    config = SelectionConfig({"people": 1}, ["*"])
    frames = inventory(first, second).say(["AH", "L", "OW"], config, np.random.default_rng(0))
    assert frames.tolist() == [100] * 4 + [200] * 3 + [201] * 2


def test_every_phone_that_is_asked_for_is_said_in_its_order_whatever_is_drawn():
    rng = np.random.default_rng(1)
    recordings = []
    for number in range(1, 9):
        names = [str(n) for n in rng.choice(NAMES[1:], 15)]
        recordings.append(recording(number, names, rng.integers(2, 6, 15).tolist()))
    recordings.append(recording(9, NAMES, [3] * 8))
    owner = {
        100 * n + i: name for n, (_, u) in enumerate(recordings, 1) for i, (name, _) in enumerate(u.phones)
    }
    stock, config = inventory(*recordings), SelectionConfig({"people": 1}, ["*"])
    for _ in range(50):
        wanted = [str(n) for n in rng.choice(NAMES, 20)]
        said = [owner[unit] for unit in stock.say(wanted, config, rng)]
        merged = [wanted[0]] + [b for a, b in pairwise(wanted) if a != b]
        assert [said[0]] + [b for a, b in pairwise(said) if a != b] == merged


def test_long_runs_are_followed_beyond_the_context_and_no_further_than_drawn():
    stock = inventory(recording(1, NAMES, [2] * 8))
    for length in (2, 4, 7):
        config = SelectionConfig({"people": 1}, ["*"], shortest=length, longest=length)
        _, place, found = stock._run(tuple(NAMES[:length]), np.random.default_rng(0))
        assert (place, found) == (0, length)
        assert len(stock.say(NAMES, config, np.random.default_rng(0))) == 16  # all from one recording


def test_an_unknown_phone_leaves_out_its_row_alone():
    row, utterance = recording(1, ["AH", "L"], [3, 3])
    rows = [
        Utterance(f"s{i}", "x.wav", 1.0, "slt", "said", "a text", phones=phones_of(names, [2, 2]))
        for i, names in enumerate((["AH", "L"], ["AH", "ZH"]))
    ]
    said, left = say_rows(
        rows, {"people": inventory((row, utterance))}, SelectionConfig({"people": 1}, ["*"])
    )
    assert [r.id for r in said] == ["s0.s0"] and left == [("s1.s0", "no recording has the phone ZH")]
    assert (said[0].text, said[0].corpus, said[0].speaker, said[0].split) == (
        "a text",
        "said",
        "people",
        "train",
    )


def test_what_is_said_does_not_depend_on_the_other_rows():
    stock = {"people": inventory(*(recording(n, NAMES, [n % 4 + 1] * 8) for n in range(1, 9)))}
    rows = [
        Utterance(f"s{i}", "x.wav", 1.0, "slt", "said", "a", phones=phones_of(NAMES, [2] * 8))
        for i in range(6)
    ]
    config = SelectionConfig({"people": 1}, ["*"], times={"*": 2})
    said = {r.id: r.units for r in say_rows(rows, stock, config)[0]}
    again = {r.id: r.units for r in say_rows(rows[::-2], stock, config)[0]}
    assert len(said) == 12 and len({tuple(u) for u in said.values()}) > 6
    assert again == {name: said[name] for name in again} and len(again) == 6
    other = SelectionConfig({"people": 1}, ["*"], times={"*": 2}, seed=1)
    assert {r.id: r.units for r in say_rows(rows, stock, other)[0]} != said


def test_a_corpus_is_said_as_often_as_it_is_named_or_as_the_others():
    stock = {"people": inventory(recording(1, NAMES, [2] * 8))}
    rows = [
        Utterance(f"{corpus}1", "x.wav", 1.0, "slt", corpus, "a", phones=phones_of(NAMES, [2] * 8))
        for corpus in ("prose", "orders", "answers")
    ]
    config = SelectionConfig({"people": 1}, ["*"], times={"prose": 3, "*": 1, "answers": 0})
    said = [row.id for row in say_rows(rows, stock, config)[0]]
    assert said == ["prose1.s0", "prose1.s1", "prose1.s2", "orders1.s0"]


@pytest.fixture
def corpus(tmp_path):
    people = [recording(n, NAMES, [n + 1] * 8) for n in range(1, 4)]
    others = [recording(n, NAMES, [2] * 8, "others") for n in (4, 5)]
    held = [recording(6, NAMES, [2] * 8, "people", "dev")]
    copy = (
        UnitRow("r1.x0", [9], [16], "", "people"),
        Utterance("r1.x0", "x.wav", 1.0, "", "people", phones=phones_of(NAMES, [2] * 8)),
    )
    everybody = [*people, *others, *held, copy]
    said = [
        Utterance("a", "x.wav", 1.0, "slt", "said", "one", phones=phones_of(NAMES, [2] * 8)),
        Utterance("a.x0", "x.wav", 1.0, "slt", "said", "one", phones=phones_of(NAMES, [2] * 8)),
        Utterance("b", "x.wav", 1.0, "espeak", "said", "two", phones=phones_of(NAMES, [2] * 8)),
        Utterance("c", "x.wav", 1.0, "slt", "said", "three", "dev", phones=phones_of(NAMES, [2] * 8)),
        Utterance("d", "x.wav", 1.0, "slt", "said", "four"),
    ]
    write_units(tmp_path / "units.jsonl", [row for row, _ in everybody])
    write_manifest(tmp_path / "manifest.jsonl", [*(u for _, u in everybody), *said])
    settings = {
        "donors": {"people": 1, "others": 0}, "donors_exclude": ["*.x[0-9]*"], "said": ["said/*"],
        "said_exclude": ["*.x[0-9]*"], "speakers": ["slt*"],
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    return tmp_path


def arguments(folder, out: str, *more: str) -> list[str]:
    given = [
        "--config",
        "config.yaml",
        "--donors",
        "units.jsonl",
        "--manifest",
        "manifest.jsonl",
        "--out",
        out,
    ]
    return [word if word.startswith("--") else str(folder / word) for word in given] + list(more)


def test_the_command_says_training_rows_of_the_named_speakers_in_training_recordings(
    corpus, capsys, monkeypatch
):
    assert main(arguments(corpus, "out.jsonl", "--jobs", "1")) == 0
    (row,) = read_units(
        corpus / "out.jsonl"
    )  # no copy, no other speaker, nothing held back, none without phones
    assert row.id == "a.s0" and row.text == "one"
    assert {unit // 100 for unit in row.units} <= {1, 2, 3}  # not the copy, the held-out one, or a share of 0
    assert "out.jsonl: 1 rows" in capsys.readouterr().out


def test_any_number_of_processes_says_the_same(corpus, monkeypatch):
    monkeypatch.setattr("speechgpt.units.unit_selection.CHUNK", 3)
    settings = json.loads((corpus / "config.yaml").read_text()) | {"times": {"said": 3}, "speakers": ["*"]}
    (corpus / "config.yaml").write_text(json.dumps(settings))
    with open(corpus / "manifest.jsonl", "a") as file:
        for n in range(10):
            phones = phones_of(NAMES, [2] * 8)
            file.write(
                json.dumps({"id": f"m{n}", "path": "x", "seconds": 1.0, "corpus": "said", "phones": phones})
                + "\n"
            )
    for jobs in ("1", "2"):
        assert main(arguments(corpus, f"{jobs}.jsonl", "--jobs", jobs)) == 0
    assert (corpus / "1.jsonl").read_bytes() == (corpus / "2.jsonl").read_bytes()
    assert len(read_units(corpus / "1.jsonl")) == 3 * 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"donors": {}}, "expected a share for each corpus"),
        ({"donors": {"people": -1}}, "expected a share for each corpus"),
        ({"donors": {"nobody": 1}}, "no train rows of nobody with phones"),
        ({"shortest": 3, "longest": 2}, "expected 1 <= shortest <= longest"),
        ({"times": {"said": 1.5}}, "expected whole numbers"),
        ({"hop": 0}, "a hop of 1 or more"),
        ({"said": ["unsaid/*"]}, "no train row with phones is to be said again"),
    ],
)
def test_settings_that_cannot_be_are_refused(corpus, change, message):
    settings = json.loads((corpus / "config.yaml").read_text()) | change
    (corpus / "config.yaml").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        main(arguments(corpus, "out.jsonl"))
    assert not (corpus / "out.jsonl").exists()


def test_a_setting_that_is_refused_is_refused_by_the_name_of_its_file(corpus):
    settings = json.loads((corpus / "config.yaml").read_text()) | {"hop": 0}
    (corpus / "config.yaml").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=re.escape(f"{corpus / 'config.yaml'}: times is")):
        main(arguments(corpus, "out.jsonl"))


def test_donors_of_one_corpus_are_not_mixed_with_anothers(corpus):
    config = SelectionConfig({"people": 1, "others": 1}, ["said/*"])
    phones = {f"r{n}": phones_of(NAMES, [2] * 8) for n in range(1, 7)}
    stocks = read_inventories([corpus / "units.jsonl"], phones, config)
    assert [len(stocks[corpus].donors) for corpus in ("people", "others")] == [3, 2]
    assert all(isinstance(one, Donor) for one in stocks["people"].donors)
