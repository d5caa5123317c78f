import pytest

from speechgpt.data.files import read_jsonl
from speechgpt.data.rows import Utterance, read_manifest, write_manifest
from speechgpt.data.splits import SplitPlan, check_splits, main, split_rows, text_key

SHARES = {"test": 0.1, "dev": 0.1}


def corpus(name, speakers, sentences, own_texts=True):
    return [
        Utterance(f"{name}-{s}-{n}", "a.wav", 1.0, s, name, f"{name} {s if own_texts else ''} says {n}")
        for s in speakers
        for n in range(sentences)
    ]


def by_split(rows, what):
    found = {}
    for row in rows:
        found.setdefault(row.split, set()).add(what(row))
    return found


def disjoint(sets):
    return sum(map(len, sets)) == len(set().union(*sets))


def test_no_speaker_and_no_text_is_shared():
    rows = corpus("a", [f"s{n}" for n in range(40)], 5)
    rows += [Utterance(f"dup{n}", "a.wav", 1.0, f"s{n}", "a", "Chapter  ONE!") for n in range(40)]
    kept, dropped = split_rows(rows, SplitPlan(SHARES))
    check_splits(kept)
    assert set(by_split(kept, lambda r: r.split)) == {"train", "dev", "test"}
    assert disjoint(by_split(kept, lambda r: r.speaker).values())
    assert disjoint(by_split(kept, lambda r: text_key(r.text)).values())
    # Only the repeated text cost rows: those of the held back speakers.
    assert 0 < len(dropped) < 12 and all(row["id"].startswith("dup") for row in dropped)
    assert len(kept) + len(dropped) == len(rows)
    test = sum(row.split == "test" for row in kept)
    assert 0.05 * len(rows) < test < 0.2 * len(rows)


def test_splits_depend_on_the_seed_and_not_on_the_order():
    rows = corpus("a", [f"s{n}" for n in range(30)], 3)

    def splits(rows, seed):
        return {row.id: row.split for row in split_rows(rows, SplitPlan(SHARES, seed))[0]}

    first = splits(rows, 0)
    assert splits(rows[::-1], 0) == first
    assert splits(rows, 1) != first


def test_one_speaker_is_split_by_text():
    rows = corpus("lj", ["linda"], 40)
    rows += [Utterance(f"again{n}", "b.wav", 1.0, "linda", "lj", rows[n].text.upper()) for n in range(40)]
    kept, dropped = split_rows(rows, SplitPlan(SHARES))
    assert not dropped and disjoint(by_split(kept, lambda r: text_key(r.text)).values())
    counts = {s: sum(r.split == s for r in kept) for s in ("train", "dev", "test")}
    assert counts == {"train": 64, "dev": 8, "test": 8}


def test_texts_of_a_one_speaker_corpus_follow_the_other_corpora():
    rows = corpus("many", [f"s{n}" for n in range(20)], 4)
    rows += [Utterance(f"lj{n}", "b.wav", 1.0, "linda", "lj", row.text) for n, row in enumerate(rows)]
    kept, dropped = split_rows(rows, SplitPlan(SHARES))
    assert not dropped
    check_splits(kept, by_text=["lj"])


def test_unknown_speakers():
    rows = [
        Utterance(f"o{n}", "a.wav", 1.0, "", "orders", slots=f"size=large; n={n // 2}") for n in range(80)
    ]
    rows += corpus("many", [f"s{n}" for n in range(20)], 4)

    def order_splits(unknown):
        kept, dropped = split_rows(rows, SplitPlan(SHARES, unknown=unknown))
        check_splits(kept)
        return by_split((r for r in kept if r.corpus == "orders"), lambda r: r.slots), len(dropped)

    assert set(order_splits("train")[0]) == {"train"}
    placed, dropped = order_splits("text")
    assert set(placed) == {"train", "dev", "test"} and disjoint(placed.values()) and dropped == 0
    assert order_splits("drop") == ({}, 80)


def test_few_texts_that_all_say():
    digits = corpus("digits", ["a", "b", "c", "d"], 10, own_texts=False)
    with pytest.raises(ValueError, match="'digits' has no .* rows left.*--share-text digits"):
        split_rows(digits, SplitPlan(SHARES))
    kept, dropped = split_rows(digits, SplitPlan(SHARES, share_text=frozenset(["digits"])))
    assert not dropped and disjoint(by_split(kept, lambda r: r.speaker).values())
    assert {s: len(v) for s, v in by_split(kept, lambda r: r.speaker).items()} == {
        "train": 2,
        "dev": 1,
        "test": 1,
    }


def test_too_few_speakers_and_kept_splits():
    two = corpus("two", ["a", "b"], 10)
    with pytest.raises(
        ValueError, match="'two' has 2 speakers, too few for train, test, dev; give --by two=text"
    ):
        split_rows(two, SplitPlan(SHARES))
    assert {r.split for r in split_rows(two, SplitPlan(SHARES, by={"two": "train"}))[0]} == {"train"}


def test_a_corpus_that_keeps_its_splits_loses_no_row_and_wins():
    rows = corpus("other", [f"s{n}" for n in range(20)], 4)
    official = [
        Utterance(f"k{n}", "a.wav", 1.0, f"k{n % 2}", "official", rows[n].text) for n in range(0, 80, 4)
    ]
    for row in official[::3]:
        row.split = "test"
    before = {row.id: row.split for row in official}
    kept, dropped = split_rows(rows + official, SplitPlan(SHARES, by={"official": "keep"}))
    assert {row.id: row.split for row in kept if row.corpus == "official"} == before
    assert dropped and all(row["id"].startswith("other") for row in dropped)
    assert disjoint(by_split(kept, lambda r: text_key(r.text)).values())


def test_a_speaker_of_two_corpora_stays_in_one_split():
    rows = corpus("a", [f"s{n}" for n in range(20)], 4) + corpus("b", [f"s{n}" for n in range(20)], 4)
    kept, _ = split_rows(rows, SplitPlan(SHARES))
    check_splits(kept)


def test_check_splits_names_the_leak():
    rows = [Utterance("x", "", 1, "ann", text="Hi."), Utterance("y", "", 1, "bob", text="hi", split="test")]
    with pytest.raises(ValueError, match=r"text 'hi' is in train \(x\) and in test \(y\)"):
        check_splits(rows)


def test_command(tmp_path):
    source, out = tmp_path / "all.jsonl", tmp_path / "deep" / "er" / "split.jsonl"
    rows = corpus("a", [f"s{n}" for n in range(20)], 2) + corpus("kept", ["x"], 3)
    rows += [Utterance(f"dup{n}", "a.wav", 1.0, f"s{n}", "a", "one") for n in range(20)]
    (tmp_path / "a.wav").touch()
    write_manifest(source, rows)
    command = ["--manifest", str(source), "--out", str(out), "--by", "kept=keep", "--seed", "3"]
    assert main(command) == 0
    kept = read_manifest(out)
    assert all(row.audio(out).exists() for row in kept)
    dropped = [row for _, row in read_jsonl(out.with_suffix(".dropped.jsonl"))]
    assert len(kept) + len(dropped) == len(rows) and "its text is in train" in dropped[0]["reason"]
    for wrong in (["--by", "a=luck"], ["--dev", "0.7", "--test", "0.4"], ["--share-text", "nobody"]):
        with pytest.raises(ValueError, match="luck|leave some for train|no corpus nobody; found a, kept"):
            main(["--manifest", str(source), "--out", str(out), *wrong])


def test_one_corpus_alone_is_split_as_it_would_be_from_its_own_manifest(tmp_path):
    both, own, out = tmp_path / "both.jsonl", tmp_path / "own.jsonl", tmp_path / "out.jsonl"
    mine = corpus("a", [f"s{n}" for n in range(20)], 5)
    write_manifest(both, mine + corpus("b", [f"t{n}" for n in range(20)], 5))
    write_manifest(own, mine)
    main(["--manifest", str(both), "--only", "a", "--out", str(out)])
    alone = read_manifest(out)
    main(["--manifest", str(own), "--out", str(out)])
    assert alone == read_manifest(out) and {row.corpus for row in alone} == {"a"}
    with pytest.raises(ValueError, match="no corpus c; found a, b"):
        main(["--manifest", str(both), "--only", "c", "--out", str(out)])
