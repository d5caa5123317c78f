import pytest

from speechgpt.data.dialogue_rows import ChainRow, read_chain, write_chain
from speechgpt.data.merge import main
from speechgpt.data.rows import UnitRow, Utterance, read_manifest, read_units, write_manifest, write_units


def test_manifests_in_different_folders(tmp_path):
    for name in ("a", "b c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.wav").touch()
        write_manifest(
            tmp_path / name / "manifest.jsonl",
            [Utterance(f"{name}1", "x.wav", 1.0, corpus=name, text="train")],
        )
    out = tmp_path / "work" / "deep" / "all.jsonl"
    assert (
        main([str(tmp_path / "a/manifest.jsonl"), str(tmp_path / "b c/manifest.jsonl"), "--out", str(out)])
        == 0
    )
    rows = read_manifest(out)
    assert [row.id for row in rows] == ["a1", "b c1"] and all(row.audio(out).exists() for row in rows)
    assert rows[0].text == "train"  # also what the split's default is called


def test_same_ids(tmp_path):
    a, b, out = (tmp_path / f"{n}.jsonl" for n in ("a", "b", "out"))
    write_units(a, [UnitRow("1", [3, 4], [1, 2], corpus="ls", split="dev")])
    write_units(b, [UnitRow("1", [3, 4], [1, 2])])
    with pytest.raises(ValueError, match="id '1' is in .*a.jsonl and in .*b.jsonl; --prefix-ids"):
        main([str(a), str(b), "--out", str(out)])
    assert not out.exists()
    assert main([str(a), str(b), "--out", str(out), "--prefix-ids"]) == 0
    assert [(row.id, row.split) for row in read_units(out)] == [("ls-1", "dev"), ("b-1", "train")]


def test_of_rows_with_one_id_the_first_files_is_kept_on_request(tmp_path):
    a, b, out = (tmp_path / f"{n}.jsonl" for n in ("a", "b", "out"))
    write_units(a, [UnitRow("2", [5, 6], [1, 1]), UnitRow("9", [7], [2])])
    write_units(b, [UnitRow("1", [3], [1]), UnitRow("2", [3, 4], [1, 2])])
    assert main(["--first", str(a), str(b), "--out", str(out)]) == 0
    assert [(row.id, row.units) for row in read_units(out)] == [("2", [5, 6]), ("9", [7]), ("1", [3])]
    assert main([str(b), str(a), "--first", "--out", str(out)]) == 0
    assert [(row.id, row.units) for row in read_units(out)] == [("1", [3]), ("2", [3, 4]), ("9", [7])]
    write_units(b, [UnitRow("1", [3], [1]), UnitRow("1", [4], [1])])  # a fault of the file, not of the order
    with pytest.raises(ValueError, match="id '1' is in .*b.jsonl and in .*b.jsonl"):
        main(["--first", str(a), str(b), "--out", str(out)])


def test_kinds_do_not_mix(tmp_path):
    a, b, out = (tmp_path / f"{n}.jsonl" for n in ("a", "b", "out"))
    write_units(a, [UnitRow("1", [3], [1])])
    write_chain(b, [ChainRow("c", "text-text", "q", "a")])
    with pytest.raises(ValueError, match="a.jsonl has UnitRow, .*b.jsonl has ChainRow"):
        main([str(a), str(b), "--out", str(out)])
    assert main([str(b), "--out", str(out)]) == 0
    assert read_chain(out) == read_chain(b)
    a.write_text("")
    with pytest.raises(ValueError, match="a.jsonl: no rows"):
        main([str(a), "--out", str(out)])
    a.write_text('{"question": "q"}\n')
    with pytest.raises(ValueError, match="neither a manifest nor"):
        main([str(a), "--out", str(out)])
    a.write_text('{"id": "1", "units": [1], "durations": ["x"]}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:1: durations is .*expected list"):
        main([str(a), "--out", str(out)])
