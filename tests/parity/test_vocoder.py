"""CodeHiFiGAN generators that fairseq wrote: our durations and waveforms are its own, in all three kinds."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from speechgpt import verify
from speechgpt.cli import main
from speechgpt.verify import WAVEFORM_LIMIT, near_an_edge, relative_error, speakers, unit_rows
from speechgpt.vocoder.fairseq_backend import FairseqVocoder
from speechgpt.vocoder.synthesize import Synthesizer

from .conftest import SPEAKERS, write_vocoder


@pytest.fixture(scope="module", params=SPEAKERS)
def original(request, tmp_path_factory) -> Path:
    return write_vocoder(tmp_path_factory.mktemp("vocoder"), request.param)


@pytest.fixture(scope="module")
def folder(original) -> Path:
    """What `speechgpt convert` made of it."""
    assert main(["convert", str(original), "--out", str(original.parent / "converted")]) == 0
    return original.parent / "converted" / "vocoder"


@pytest.fixture(scope="module")
def judge(original):
    return FairseqVocoder.load(original, original.parent / "config.json", "cpu")


@pytest.fixture(scope="module")
def ours(folder):
    return Synthesizer.load(folder, "cpu")


def test_durations_are_fairseqs(judge, ours):
    rows = [*unit_rows(1000), np.random.default_rng(5).permutation(1000)]
    found = ours.durations(rows, speakers(ours)[0])  # one padded batch
    edges = 0
    for row, theirs, mine in zip(rows, judge.durations(rows), found, strict=True):
        near = near_an_edge(judge.log_durations(row)).numpy()
        assert (theirs == mine)[~near].all()
        edges += near.sum()
    assert edges < 5 and len(np.unique(np.concatenate(found))) > 5


def test_waveforms_are_fairseqs(judge, ours):
    rows = unit_rows(1000)[:3]
    for speaker in speakers(ours):
        frames = ours.durations(rows, speaker)
        mine = ours.synthesize(rows, speaker=speaker)  # one padded batch
        for row, durations, waveform in zip(rows, frames, mine, strict=True):
            # Once with the durations that fairseq predicts itself, once with given ones.
            for theirs in judge.synthesize([row], None, speaker) + judge.synthesize(
                [row], [durations], speaker
            ):
                assert len(theirs) == durations.sum() * 320
                assert 0.02 < np.abs(theirs).max() < 0.99  # neither silent nor flattened by the last tanh
                error = relative_error(torch.from_numpy(theirs), torch.from_numpy(waveform))
                assert error <= WAVEFORM_LIMIT


def test_voices_differ(judge, ours):
    config, row = ours.vocoder.config, [np.arange(10)]
    if not config.has_speaker:
        pytest.skip("one voice")
    vectors = np.eye(config.speaker_vector_dim, dtype=np.float32) if config.speaker_vector_dim else range(3)
    frames = [np.full(10, 2)]
    theirs = torch.from_numpy(judge.synthesize(row, frames, vectors[1])[0])
    assert (
        relative_error(theirs, torch.from_numpy(ours.synthesize(row, frames, vectors[1])[0]))
        <= WAVEFORM_LIMIT
    )
    assert relative_error(theirs, torch.from_numpy(ours.synthesize(row, frames, vectors[2])[0])) > 1e-3


def unfolded(weights: dict, original: Path) -> None:
    """Weight norm forgotten: the direction taken for the weight."""
    state = torch.load(original, weights_only=True)["generator"]
    weights["resblocks.4.convs1.1.weight"] = state["resblocks.4.convs1.1.weight_v"]


def wrong_dimension(weights: dict, original: Path) -> None:
    """Transposed convolutions are normalised over their inputs too, unlike in torch's other conventions."""
    state = torch.load(original, weights_only=True)["generator"]
    direction, gain = state["ups.1.weight_v"], state["ups.1.weight_g"]
    norm = direction.norm(dim=(0, 2), keepdim=True)
    weights["ups.1.weight"] = direction / norm * gain.mean()


def swapped_blocks(weights: dict, original: Path) -> None:
    for part in ("weight", "bias"):
        names = [f"resblocks.4.convs{n}.0.{part}" for n in (1, 2)]
        weights[names[0]], weights[names[1]] = (weights[n].clone() for n in reversed(names))


@pytest.mark.parametrize("spoil", [unfolded, wrong_dimension, swapped_blocks])
def test_a_wrong_conversion_is_noticed(original, folder, judge, tmp_path, spoil):
    weights = load_file(folder / "model.safetensors")
    spoil(weights, original)
    save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    wrong = Synthesizer.load(tmp_path, "cpu")
    row, frames, speaker = [np.arange(10)], [np.full(10, 2)], speakers(wrong)[0]
    theirs, mine = judge.synthesize(row, frames, speaker)[0], wrong.synthesize(row, frames, speaker)[0]
    assert relative_error(torch.from_numpy(theirs), torch.from_numpy(mine)) > 100 * WAVEFORM_LIMIT


def test_exchanged_gain_and_direction_are_refused(original, tmp_path, capsys):
    state = torch.load(original, weights_only=True)
    weights = state["generator"]
    names = ["conv_pre.weight_g", "conv_pre.weight_v"]
    weights[names[0]], weights[names[1]] = weights[names[1]], weights[names[0]]
    torch.save(state, tmp_path / "g_1")
    (tmp_path / "config.json").write_bytes((original.parent / "config.json").read_bytes())
    assert main(["convert", str(tmp_path / "g_1"), "--out", str(tmp_path / "out")]) == 2
    assert "conv_pre" in capsys.readouterr().err


def test_the_command_gives_fairseqs_waveform(original, tmp_path, capsys, monkeypatch):
    if json.loads((original.parent / "config.json").read_text()).get("embedder_params"):
        pytest.skip("the command has no way to give a speaker vector")
    monkeypatch.setenv("SPEECHGPT_CACHE", str(tmp_path / "cache"))
    multiple = json.loads((original.parent / "config.json").read_text()).get("multispkr")
    units, voice = "<sosp><5><800><31><999><eosp>", ["--speaker", "7"] if multiple else []
    found = {}
    for backend in ("fairseq", "native"):
        out = tmp_path / f"{backend}.wav"
        command = ["decode", units, "--out", str(out), "--vocoder", str(original), "--device", "cpu"]
        assert main([*command, *voice, "--backend", backend]) == 0
        found[backend] = soundfile.read(out)[0]
    assert capsys.readouterr().out.count("\n") == 2  # none of fairseq's chatter
    # a step of 16 bits is more than the limit
    assert np.abs(found["fairseq"] - found["native"]).max() <= WAVEFORM_LIMIT + 2**-15


def test_verify_fails_a_wrong_folder(original, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "UNITS", (1, 25))
    config = original.parent / "config.json"
    assert all(v.passed for v in verify.verify_vocoder(original, config, folder))
    weights = load_file(folder / "model.safetensors")
    weights["dur_predictor.proj.bias"] += 0.5
    swapped_blocks(weights, original)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert [v.passed for v in verify.verify_vocoder(original, config, tmp_path)] == [False, False]
