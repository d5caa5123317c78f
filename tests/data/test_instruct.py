import subprocess
import sys
from pathlib import Path

import pytest

from speechgpt.data.dialogue_rows import InstructRow, read_instruct
from speechgpt.data.files import read_jsonl, write_jsonl
from speechgpt.data.instruct import TASKS, build_rows, main, read_descriptions
from speechgpt.data.published import read_published, read_unit_lines
from speechgpt.data.rows import UnitRow, write_units

PRESETS = Path(__file__).parents[2] / "speechgpt" / "presets"
TEXTS = {"asr": ["Write.", "Type it.", "Note it."], "tts": ["Speak.", "Say it.", "Read it."]}


def unit_rows(count=40):
    return [
        UnitRow(
            f"u{n}",
            [n % 7, 9, n % 5],
            [1, 2, 3],
            "ann",
            "a",
            f" text {n} <12>",
            ("train", "dev")[n % 10 == 0],
        )
        for n in range(count)
    ]


def test_there_are_enough_descriptions_of_each_task():
    asr, tts = (read_descriptions(TASKS / f"{task}.txt") for task in ("asr", "tts"))
    assert len(asr) >= 110 and len(tts) >= 110
    assert len({line.lower() for line in asr + tts}) == len(asr) + len(tts)


@pytest.mark.parametrize(
    "content, reason",
    [
        ("# hm\n\nWrite.\nSpeak\n", r":4: 'Speak' has no full stop"),
        ("Write.\nWrite.\n", ":2: the same description as in line 1"),
        ("Write. This is input: here.\n", ":1: .* part of the template"),
        ("Write <12>.\n", ":1: .* bracket"),
        ("# nothing\n", "no descriptions"),
    ],
)
def test_broken_descriptions_are_named_with_their_line(tmp_path, content, reason):
    (tmp_path / "asr.txt").write_text(content)
    with pytest.raises(ValueError, match=rf"asr\.txt{reason}|{reason}"):
        read_descriptions(tmp_path / "asr.txt")


def test_a_row_depends_on_its_id_and_the_seed_alone():
    rows = unit_rows()
    built = {row.id.rsplit(".", 1)[0]: row for row in build_rows(rows, TEXTS)}
    again = {row.id.rsplit(".", 1)[0]: row for row in build_rows(rows[::-3], TEXTS)}
    assert again == {name: built[name] for name in again} and len(again) == 14
    kinds = [row.kind for row in built.values()]
    assert 10 < kinds.count("asr") < 30 and set(kinds) == {"asr", "tts"}
    for kind in ("asr", "tts"):
        assert {row.description for row in built.values() if row.kind == kind} == set(TEXTS[kind])
    other = {row.id.rsplit(".", 1)[0]: row for row in build_rows(rows, TEXTS, seed=1)}
    assert other != built
    assert built["u3"].text == "text 3 <12>" and built["u3"].units == [3, 9, 3]
    assert built["u0"].split == "dev" and built["u1"].split == "train"


def test_both_directions_and_shares():
    rows = unit_rows()
    both = list(build_rows(rows, TEXTS, both=True))
    assert len(both) == 80 and len({row.id for row in both}) == 80
    assert {row.kind for row in build_rows(rows, TEXTS, asr_share=1.0)} == {"asr"}
    assert {row.kind for row in build_rows(rows, TEXTS, asr_share=0.0)} == {"tts"}


def test_command(tmp_path):
    units, out, chat = (tmp_path / name for name in ("units.jsonl", "rows.jsonl", "chat.jsonl"))
    silent = UnitRow("silent", [5, 6], [1, 1])
    write_units(units, [*unit_rows(), silent])
    write_jsonl(
        chat,
        [
            {"question": "q?", "answer": "a."},
            {"id": "c", "question": "q", "answer": "a", "split": "test"},
            {"id": "another voice asks", "question": "q", "answer": "a", "split": "test"},
        ],
    )
    stage1, dev, lines = tmp_path / "train.txt", tmp_path / "dev.txt", tmp_path / "published.jsonl"
    command = ["--units", str(units), "--out", str(out), "--chat", str(chat), "--stage1", str(stage1)]
    assert main([*command, "--stage1-dev", str(dev), "--published", str(lines)]) == 0
    rows = read_instruct(out)
    assert len(rows) == 42 and [row.id for row in rows[-2:]] == ["chat-000001.chat", "c.chat"]
    assert rows[-1].split == "test"
    assert len(list(read_unit_lines(stage1))) == 37 and list(read_unit_lines(stage1))[-1] == silent.units
    assert len(list(read_unit_lines(dev))) == 4
    back = read_published(lines, InstructRow)
    assert [(r.kind, r.text) for r in back] == [(r.kind, r.text) for r in rows if r.split == "train"]
    first = out.read_bytes()
    assert main(command) == 0 and out.read_bytes() == first
    assert main([*command, "--splits", "test"]) == 0 and len(read_instruct(out)) == 1


def test_a_config_gives_speaking_one_voice_and_leaves_rows_out(tmp_path):
    units, out, config = (tmp_path / name for name in ("units.jsonl", "rows.jsonl", "instruct.yaml"))
    said = [UnitRow(f"{who}{n}", [1, 2], [1, 1], who, "talk", f"t {n}") for who in "ab" for n in range(4)]
    write_units(units, said)
    config.write_text("both: true\ntts_speakers: [a]\nexclude: ['talk/?3']\n")
    command = ["--units", str(units), "--out", str(out), "--config", str(config)]
    assert main([*command, "--tts-exclude", "talk/a[12]"]) == 0
    assert [row.id for row in read_instruct(out) if row.kind == "tts"] == ["a0.tts"]
    assert main(command) == 0
    assert sorted(row.id for row in read_instruct(out)) == sorted(
        [f"{who}{n}.asr" for who in "ab" for n in range(3)] + [f"a{n}.tts" for n in range(3)]
    )
    assert main([*command, "--exclude", "talk/a*", "--tts-speakers", "b"]) == 0  # options come before it
    assert {row.id[:1] for row in read_instruct(out)} == {"b"}
    config.write_text("voice: a\n")
    with pytest.raises(ValueError, match="unknown setting voice; known: seed"):
        main(command)


def test_mini_learns_to_speak_from_no_copy_and_from_every_other_row_of_its_voice(tmp_path):
    config, units = PRESETS / "mini" / "instruct.yaml", tmp_path / "units.jsonl"
    spoken = ["unknown.s00012.q", "prose.00003.1", "talk.name.4.q", "sum.00007.a", "sentence.00001"]
    copies = [f"{name}{end}" for name in spoken for end in (".x0", ".x12", ".f0", ".x0.f1", ".s1")]
    rows = [UnitRow(name, [1, 2], [1, 1], "slt", "mini-questions", "hi") for name in (*spoken, *copies)]
    write_units(units, rows)
    assert main(["--units", str(units), "--config", str(config), "--out", str(tmp_path / "rows.jsonl")]) == 0
    made = {kind: set() for kind in ("asr", "tts")}
    for row in read_instruct(tmp_path / "rows.jsonl"):
        made[row.kind].add(row.id.removesuffix(f".{row.kind}"))
    assert made == {"asr": {*spoken, *copies}, "tts": set(spoken)}


def test_rejects_are_counted_and_kept_with_the_reason(tmp_path):
    units, out = tmp_path / "units.jsonl", tmp_path / "rows.jsonl"
    write_units(
        units,
        [*unit_rows(3), UnitRow("none", [], [], text="hm"), UnitRow("x", [1, 2] * 9, [1] * 18, text="y")],
    )
    command = ["--units", str(units), "--out", str(out), "--max-units", "10"]
    with pytest.raises(ValueError, match=r"none: no units \(--max-bad N"):
        main(command)
    with pytest.raises(ValueError, match="x: 18 units, more than 10; 1 are tolerated"):
        main([*command, "--max-bad", "1"])
    assert not out.exists()
    assert main([*command, "--max-bad", "2"]) == 0
    rejects = [row for _, row in read_jsonl(tmp_path / "rows.rejects.jsonl")]
    assert [row["id"] for row in rejects] == ["none", "x"] and len(read_instruct(out)) == 3
    write_units(units, unit_rows(3))
    assert main(command) == 0 and not (tmp_path / "rows.rejects.jsonl").exists()


def test_nothing_to_build_is_an_error(tmp_path):
    units = tmp_path / "units.jsonl"
    write_units(units, [UnitRow("a", [1], [1])])
    with pytest.raises(ValueError, match="no row with text"):
        main(["--units", str(units), "--out", str(tmp_path / "rows.jsonl")])
    with pytest.raises(ValueError, match="--asr-share is 2.0"):
        main(["--units", str(units), "--out", str(tmp_path / "rows.jsonl"), "--asr-share", "2"])


def test_the_builders_import_no_torch():
    modules = "readers splits merge folds instruct chain published".split()
    code = "import sys; " + "; ".join(f"import speechgpt.data.{m}" for m in modules)
    code += "; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
