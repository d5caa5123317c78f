from dataclasses import replace
from pathlib import Path

import pytest

from speechgpt.data.draws import matches
from speechgpt.data.folds import FoldsConfig, heard, main, unheard
from speechgpt.data.mini import MiniConfig
from speechgpt.data.rows import Utterance, read_manifest, write_manifest
from speechgpt.data.settings import load_settings
from speechgpt.data.splits import text_key
from speechgpt.data.voices import resolve

PRESETS = Path(__file__).parents[2] / "speechgpt" / "presets"

CONFIG = """
folds: 2
seed: 3
by: {lone: text, orders: text, many: speaker, "*": speaker}
leave_out: [["slt*"], ["rms*", "espeak-[!u]*"]]
heard_by_all: [mini-answers]
added: ["mini-*"]
"""


def row(name, corpus, speaker, text="", split="train", **more):
    return Utterance(name, "a.wav", 1.0, speaker, corpus, text, split, **more)


def recordings():
    rows = [
        row(f"l{n}", "lone", "kathleen", f"Say {n // 2}!" if n % 2 else f"say  {n // 2}") for n in range(40)
    ]
    rows += [row(f"o{n}", "orders", "", slots=f"size=large; n={n // 2}") for n in range(40)]
    rows += [row(f"m{n}", "many", f"s{n % 20}", "the same") for n in range(60)]
    rows += [row(f"v{n}", "mini-sentences", name, "hi") for n, name in enumerate(VOICES)]
    rows += [row(f"q{n}.q", "mini-questions", name, "hi") for n, name in enumerate(VOICES)]
    rows += [row(f"q{n}.a", "mini-answers", "slt", "hi") for n in range(3)]
    rows += [row(f"{split}{n}", "many", split, "held", split) for split in ("dev", "test") for n in range(3)]
    return rows


VOICES = ["slt", "slt-deep", "rms-low", "espeak-gb-f1", "espeak-us-f1", *(f"drawn{n}" for n in range(20))]


def copies(rows):
    """As `speechgpt perturb` makes them, of train alone."""
    copied = [r for r in rows if r.split == "train" and r.corpus != "mini-answers"]
    return [replace(r, id=f"{r.id}.x{n}", path=f"{r.id}.x{n}.flac") for r in copied for n in range(2)]


def folds(tmp_path, rows, more=(), config=CONFIG):
    """{"heard-0": rows, ...} as the command writes them; their audio exists."""
    source, out = tmp_path / "corpus", tmp_path / "deep er" / "folds"
    source.mkdir(exist_ok=True)
    for each in {r.path for r in (*rows, *more)}:
        (source / each).touch()
    write_manifest(source / "heard.jsonl", rows)
    write_manifest(source / "all.jsonl", [*rows, *more])
    (tmp_path / "folds.yaml").write_text(config)
    assert not main(["--config", str(tmp_path / "folds.yaml"), "--heard", str(source / "heard.jsonl"),
                     "--manifest", str(source / "all.jsonl"), "--out", str(out)])  # fmt: skip
    found = {path.stem: read_manifest(path) for path in out.iterdir()}
    assert all(r.audio(out / "x.jsonl").exists() for rows in found.values() for r in rows)
    return found


def original(row):
    """The id of the recording that a row is of: without .f0 and .x0."""
    return row.id.rsplit(".f", 1)[0].rsplit(".x", 1)[0]


def test_no_encoder_hears_a_recording_or_a_voice_of_its_fold_and_none_is_lost(tmp_path):
    rows = recordings()
    found = folds(tmp_path, rows, copies(rows))
    assert set(found) == {"heard-0", "heard-1", "unheard-0", "unheard-1"}
    train = {r.id for r in rows if r.split == "train" and r.corpus != "mini-answers"}
    left_out = [{original(r) for r in found[f"unheard-{n}"]} for n in (0, 1)]
    assert left_out[0] | left_out[1] == train and not left_out[0] & left_out[1]
    assert min(map(len, left_out)) > len(train) / 4
    for number in (0, 1):
        heard = [r for r in found[f"heard-{number}"] if r.split == "train"]
        assert {r.id for r in heard} == {r.id for r in rows if r.split == "train"} - left_out[number]
        by_speaker = ("many", "mini-sentences", "mini-questions")
        unheard = [r for r in found[f"unheard-{number}"] if r.corpus in by_speaker]
        assert not {r.speaker for r in unheard} & {r.speaker for r in heard if r.corpus in by_speaker}
        for corpus in ("lone", "orders"):
            sides = [[r for r in side if r.corpus == corpus] for side in (heard, found[f"unheard-{number}"])]
            said = [{text_key(r.text or r.slots) for r in side} for side in sides]
            assert all(said) and not said[0] & said[1]


def test_copies_stay_with_their_recordings_and_only_added_corpora_get_new_ids(tmp_path):
    rows = recordings()
    more = copies(rows)
    found = folds(tmp_path, rows, more)
    written = {}
    for number in (0, 1):
        for r in found[f"unheard-{number}"]:
            assert r.id.endswith(f".f{number}") == r.corpus.startswith("mini-")
            written.setdefault(original(r), []).append((number, r.id))
    for name, ids in written.items():
        assert len(ids) == 3 and len({number for number, _ in ids}) == 1, name
    everything = {r.id for r in rows + more if r.split == "train" and r.corpus != "mini-answers"}
    assert {i.removesuffix(f".f{n}") for ids in written.values() for n, i in ids} == everything
    assert ("q4.q.x1.f0" in {i for ids in written.values() for _, i in ids}) == (written["q4.q"][0][0] == 0)


def test_dev_is_in_all_heard_and_test_in_nothing(tmp_path):
    found = folds(tmp_path, recordings())
    for name, rows in found.items():
        splits = [r.split for r in rows]
        assert (splits.count("dev"), splits.count("test")) == (3 * name.startswith("heard"), 0)
    assert all({"q0.a", "q1.a", "q2.a"} <= {r.id for r in found[f"heard-{n}"]} for n in (0, 1))


def test_named_speakers_are_left_out_where_they_are_named_and_the_others_by_the_seed_alone(tmp_path):
    rows = recordings()
    found = folds(tmp_path, rows)
    fold = {r.speaker: n for n in (0, 1) for r in found[f"unheard-{n}"] if r.corpus == "mini-sentences"}
    assert [fold[v] for v in VOICES[:4]] == [0, 0, 1, 1]
    assert {fold[v] for v in VOICES[4:]} == {0, 1}
    again = folds(tmp_path, rows[::-1])
    assert {n: sorted(r.id for r in p) for n, p in again.items()} == {
        n: sorted(r.id for r in p) for n, p in found.items()
    }
    other = folds(tmp_path, rows, config=CONFIG.replace("seed: 3", "seed: 4"))
    assert {r.id for r in other["unheard-0"]} != {r.id for r in found["unheard-0"]}


def test_three_folds(tmp_path):
    config = CONFIG.replace("folds: 2", "folds: 3").replace('["rms*"', '[], ["rms*"')
    found = folds(tmp_path, recordings(), config=config)
    assert len(found) == 6
    assert [n for n in range(3) if "v2" in {original(r) for r in found[f"unheard-{n}"]}] == [2]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            ', "*": speaker',
            "",
            r"heard\.jsonl: by: no corpus 'mini-sentences' \(row v4\) and no .\*.; found lone, orders, many",
        ),
        ("orders: text", "orders: speaker", r"heard\.jsonl: row o0 of corpus 'orders' has no speaker"),
        ("orders: text", "orders: luck", r"folds\.yaml: by: orders: 'luck', expected speaker or text"),
        ('["slt*"]', '["slt*", "rms-l*"]', r"heard\.jsonl: leave_out: speaker 'rms-low' is in folds 0 and 1"),
        ("folds: 2", "folds: 3", r"folds\.yaml: leave_out: 2 lists of speakers for 3 folds"),
        ("folds: 2", "folds: 1", "folds: 1, expected 2 or more"),
        ('["slt*"], ', "slt, ", "expected lists of patterns"),
        ("[mini-answers]", '["*"]', r"all\.jsonl: no training row is unheard by the encoder of fold 0"),
        ("seed", "sead", "folds.yaml: unknown setting sead"),
    ],
)
def test_errors(tmp_path, old, new, message):
    assert old in CONFIG
    with pytest.raises(ValueError, match=message):
        folds(tmp_path, recordings(), config=CONFIG.replace(old, new))
    assert not (tmp_path / "deep er").exists()


def test_an_encoder_that_would_hear_nothing_is_an_error(tmp_path):
    rows = [row("a", "many", "slt"), row("b", "many", "slt"), row("c", "many", "dev", split="dev")]
    with pytest.raises(ValueError, match=r"heard\.jsonl: no training row is heard by the encoder of fold 0"):
        folds(tmp_path, rows)


def test_of_a_corpus_with_a_share_so_many_unheard_rows_are_taken_and_all_are_heard():
    rows = [row(f"{corpus}{n}", corpus, f"s{n}") for corpus in ("few", "all") for n in range(400)]
    config = FoldsConfig(2, shares={"few": 0.25})
    taken = [r.id for number in range(2) for r in unheard(config, rows, number)]
    assert 70 < sum(name.startswith("few") for name in taken) < 130
    assert sum(name.startswith("all") for name in taken) == 400 and len(set(taken)) == len(taken)
    assert sum(len(heard(config, rows, number)) for number in range(2)) == len(rows)


def test_the_folds_of_mini_part_its_voices_and_name_every_one():
    config = load_settings(FoldsConfig, PRESETS / "mini" / "folds.yaml")
    voices = resolve(
        [
            name
            for names in load_settings(MiniConfig, PRESETS / "mini" / "corpus.yaml").voices_train
            for name in names.split(",")
        ]
    )
    named = {v: [n for n, patterns in enumerate(config.leave_out) if matches(v, patterns)] for v in voices}
    assert all(len(folds) == 1 for folds in named.values())
    assert len({named[v][0] for v in voices if v.startswith(("slt", "hts"))}) == 1  # one person
    assert {named[v][0] for v in voices} == set(range(config.folds))
    assert config.fold(row("k", "kathleen", "kathleen", "hi")) in range(config.folds)
    assert config.fold(row("q.a", "mini-answers", "slt", "hi")) is None
