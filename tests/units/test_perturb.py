"""Perturbed copies: which rows get them, what they hold, and that a kill changes nothing."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechgpt.data.audio import SAMPLE_RATE, write_wav
from speechgpt.data.rows import Utterance, read_manifest, write_manifest
from speechgpt.data.settings import load_settings, settings_from
from speechgpt.units import perturb as module
from speechgpt.units.perturb import babble, file_name, main, perturb, perturb_waveform
from speechgpt.units.perturb_config import PerturbConfig

ROOT = Path(__file__).parents[2]
EVERYTHING = {
    "equalizer_chance": 0.5,
    "telephone_chance": 0.3,
    "noise_chance": 0.6,
    "reverb_chance": 0.3,
    "gain_db": [-24.0, -1.0],
}


def write_corpus(folder: Path, reverse: bool = False) -> Path:
    rows = []
    for index in range(6):
        samples = SAMPLE_RATE // 2 + 800 * index
        tone = 0.3 * np.sin(2 * np.pi * 400 * np.arange(samples) / SAMPLE_RATE)
        write_wav(folder / f"{index}.wav", tone.astype(np.float32))
        row = Utterance(f"r/{index}", f"{index}.wav", samples / SAMPLE_RATE, f"s{index}", "ab"[index % 2])
        row.text, row.slots = f"text {index}", "size=large"
        row.split = {4: "dev", 5: "test"}.get(index, "train")
        row.phones = [["SIL", 0.1], ["AA", 0.3], ["S", round(row.seconds, 4)]]
        rows.append(row)
    write_manifest(folder / "manifest.jsonl", reversed(rows) if reverse else rows)
    return folder / "manifest.jsonl"


@pytest.fixture
def manifest(tmp_path) -> Path:
    return write_corpus(tmp_path)


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    files = (p for p in out.rglob("*") if p.is_file())
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


def test_train_rows_get_copies_and_held_out_rows_never(manifest, tmp_path):
    assert perturb([manifest], tmp_path / "out", PerturbConfig({"a": 3, "b": 1}), jobs=1) == 2 * 3 + 2 * 1
    rows = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert [row.id for row in rows[:4]] == ["r/0.x0", "r/0.x1", "r/0.x2", "r/1.x0"]
    assert {row.split for row in rows} == {"train"}
    assert Counter(row.text for row in rows) == {"text 0": 3, "text 1": 1, "text 2": 3, "text 3": 1}
    assert (rows[3].speaker, rows[3].corpus, rows[3].slots) == ("s1", "b", "size=large")
    for row in rows:
        info = soundfile.info(row.audio(tmp_path / "out" / "manifest.jsonl"))
        assert (info.samplerate, info.channels, info.format) == (SAMPLE_RATE, 1, "FLAC")
        assert info.frames / SAMPLE_RATE == pytest.approx(row.seconds, abs=1e-4)


def test_corpora_that_are_not_named_are_left_out(manifest, tmp_path):
    assert perturb([manifest], tmp_path / "out", PerturbConfig({"b": 2}), jobs=1) == 4
    with pytest.raises(ValueError, match="copies names c; the manifests have rows of 'a', 'b'"):
        perturb([manifest], tmp_path / "out", PerturbConfig({"b": 2, "c": 1}), jobs=1)


@pytest.mark.parametrize("speed", [0.85, 1.18])
def test_speed_moves_pitch_and_phones(manifest, tmp_path, speed):
    perturb([manifest], tmp_path / "out", PerturbConfig(1, speed=[speed, speed]), jobs=1)
    sources = {row.id: row for row in read_manifest(manifest)}
    for row in read_manifest(tmp_path / "out" / "manifest.jsonl"):
        source = sources[row.id.removesuffix(".x0")]
        assert row.seconds == pytest.approx(source.seconds / speed, abs=2e-4)
        assert [p for p, _ in row.phones] == ["SIL", "AA", "S"]
        ends = [end / speed for _, end in source.phones]
        assert [end for _, end in row.phones] == pytest.approx(ends, abs=2e-4)
        samples, _ = soundfile.read(row.audio(tmp_path / "out" / "manifest.jsonl"))
        peak = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * SAMPLE_RATE / len(samples)
        assert peak == pytest.approx(400 * speed, abs=4)


def test_copies_depend_on_seed_id_and_number_alone(tmp_path, small_chunks):
    config = PerturbConfig({"a": 2, "b": 1}, **EVERYTHING)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        perturb([write_corpus(tmp_path / name, name == "two")], tmp_path / name / "out", config, 3, jobs=1)
    more = PerturbConfig(3, **EVERYTHING)
    perturb([tmp_path / "one" / "manifest.jsonl"], tmp_path / "more", more, 3, jobs=2)
    perturb([tmp_path / "one" / "manifest.jsonl"], tmp_path / "other", more, 4, jobs=1)

    def audio(out: Path) -> dict[str, bytes]:
        return {k: v for k, v in contents(out).items() if k.startswith("audio")}

    one, two = audio(tmp_path / "one" / "out"), audio(tmp_path / "two" / "out")
    assert len(one) == 6 and one == two
    found, other = audio(tmp_path / "more"), audio(tmp_path / "other")
    assert one.items() <= found.items()
    assert len(set(found.values()) | set(other.values())) == 24


def test_a_killed_run_goes_on_and_ends_the_same(manifest, tmp_path, small_chunks, monkeypatch):
    config, out = PerturbConfig({"a": 3, "b": 2}, **EVERYTHING), tmp_path / "killed"
    perturb([manifest], tmp_path / "whole", config, 1, jobs=1)
    made = []

    def dies(*args):
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(args[3])
        return perturb_waveform(*args)

    monkeypatch.setattr(module, "perturb_waveform", dies)
    with pytest.raises(KeyboardInterrupt):
        perturb([manifest], out, config, 1, jobs=1)
    assert not (out / "manifest.jsonl").exists()
    folder = next((out / "audio").iterdir())
    (folder / ".x.123.part.flac").write_bytes(b"what a kill leaves")
    again = []
    monkeypatch.setattr(module, "perturb_waveform", lambda *a: again.append(a[3]) or perturb_waveform(*a))
    perturb([manifest], out, config, 1, jobs=1)
    assert contents(out) == contents(tmp_path / "whole")
    assert len(again) == 7 and not {"r/0.x0", "r/0.x1", "r/0.x2"} & set(again)
    again.clear()
    perturb([manifest], out, config, 1, jobs=1)
    assert not again


def test_other_settings_leave_nothing_of_the_old_ones(manifest, tmp_path):
    out = tmp_path / "out"
    perturb([manifest], out, PerturbConfig(3, **EVERYTHING), 1, jobs=1)
    perturb([manifest], out, PerturbConfig(1), 1, jobs=1)
    perturb([manifest], tmp_path / "fresh", PerturbConfig(1), 1, jobs=1)
    assert contents(out) == contents(tmp_path / "fresh")


def test_the_shortest_recording_still_has_a_frame():
    config = PerturbConfig(1, speed=[1.18, 1.18])
    tone = np.sin(np.arange(410) / 5).astype(np.float32)
    assert len(perturb_waveform(tone, config, 0, "x")) >= 400


def test_any_id_is_a_file_name():
    names = ["a", "a/b", "a_b", "../a", "..", "a b", "é" * 300, "é" * 301]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names)
    assert all("/" not in f and not f.startswith(".") and len(f) < 200 for f in files)


def test_command_and_its_refusals(manifest, tmp_path, capsys):
    config = tmp_path / "perturb.yaml"
    call = ["--manifest", str(manifest), "--out", str(tmp_path / "out"), "--config", str(config)]
    config.write_text("copies: {a: 1}\nspeed: [0.9, 1.1]\n")
    assert main([*call, "--seed", "2", "--jobs", "2"]) == 0
    assert "2 rows" in capsys.readouterr().out
    for text, message in (
        ("copies: 1\nspeeds: [1, 1]\n", "perturb.yaml: unknown setting speeds; known: copies, speed"),
        ("copies: {a: many}\n", "perturb.yaml: copies.a: expected int, found 'many'"),
        ("copies: 1\nspeed: [1.1, 0.9]\n", r"perturb.yaml: speed is \[1.1, 0.9\]; expected \[lowest"),
        ("copies: 1\nspeed: [0.1, 0.9]\n", "perturb.yaml: speed is .* from 0.5 to 2.0"),
        ("speed: [0.9, 1.1]\n", "missing setting copies"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            main(call)


def test_the_preset_loads():
    config = load_settings(PerturbConfig, ROOT / "speechgpt" / "presets" / "mini" / "perturb.yaml")
    assert (config.count("coffee"), config.count("librispeech")) == (30, 0)
    assert config.sound().active


def test_others_talk_in_the_background_as_loud_as_was_drawn():
    rng = np.random.default_rng(0)
    voice, others = rng.standard_normal(8000).astype(np.float32), [np.ones(500, np.float32)] * 3
    sound = babble(voice, others, 6.0, random.Random(1))
    assert len(sound) == 8000
    ratio = 10 * np.log10(np.mean(voice**2) / np.mean(sound**2))
    assert ratio == pytest.approx(6.0, abs=0.01)
    config = PerturbConfig({"a": 1}, (1.0, 1.0), noise_chance=1.0, babble_share=1.0, snr_db=(10, 10))
    mixed = perturb_waveform(voice / 10, config, 1, "x", [np.ones(500, np.float32)])
    quiet = perturb_waveform(voice / 10, config, 1, "x")  # nobody is there to talk: other noise
    assert not np.allclose(mixed, quiet) and abs(mixed.mean()) > 5 * abs(quiet.mean())
    assert np.corrcoef(mixed, voice)[0, 1] > 0.9


def test_as_many_copies_are_noisy_as_was_asked_with_and_without_babble():
    tone = 0.1 * np.sin(np.arange(4000) / 5).astype(np.float32)
    config = PerturbConfig({"a": 1}, (1.0, 1.0), noise_chance=0.5, babble_share=0.8, snr_db=(10, 10))
    for others in ([], [np.ones(500, np.float32)]):
        copies = [perturb_waveform(tone, config, 1, str(n), others) for n in range(400)]
        noisy = sum(np.abs(copy - tone).max() > 0.01 for copy in copies)
        assert 160 < noisy < 240  # 200, within four standard deviations; full chances for both give 280


def test_settings_that_cannot_be_are_refused():
    quiet = [{"trim_quiet_db": {"a": value}} for value in (12, [20], [30, 10], [0, 10])]
    for wrong in ({"trim": {"a": 0.6}}, *quiet, {"revoice": {"loud": 1}}, {"revoice": {"chance": 3}}):
        with pytest.raises(ValueError, match="trim|revoice|chance"):
            settings_from(PerturbConfig, {"copies": 1} | wrong)


@pytest.mark.parametrize("wrong", [12, [20], [30, 10], ["a", "b"], [1, 2, 3], [True, 2]])
def test_every_range_is_two_numbers_the_lowest_first(wrong):
    for name in ("speed", "snr_db", "reverb_seconds", "reverb_direct_db", "gain_db"):
        with pytest.raises(ValueError, match=rf"^{name} is .*; expected \[lowest, highest\]"):
            PerturbConfig({"a": 1}, **{name: wrong})
    with pytest.raises(ValueError, match=r"^trim_quiet_db is .*; expected \[least, most\] by corpus"):
        PerturbConfig({"a": 1}, trim_quiet_db={"a": wrong})
