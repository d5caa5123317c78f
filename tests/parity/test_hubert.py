"""HuBERT checkpoints that fairseq wrote: our features and units are its own, a wrong conversion's are not."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechgpt import verify
from speechgpt.cli import main
from speechgpt.data.audio import write_wav
from speechgpt.data.inert import read_inert
from speechgpt.units.codebook import Codebook
from speechgpt.units.encoder import Encoder
from speechgpt.units.fairseq_backend import FairseqHubert, FairseqUnits
from speechgpt.units.kmeans_file import read_centroids
from speechgpt.units.margins import compare_units, decided_frames
from speechgpt.verify import FEATURE_LIMIT, all_features, relative_error, synthetic, units_verdict

from .conftest import HUBERTS, K, write_hubert, write_kmeans

LENGTHS = (400, 401, 719, 720, 1_040, 16_000, 48_123)  # samples; 719 gives one frame, 720 two
LONG = 480_000  # 30 s
LAYER = {"base": 11}  # of the units; the last but one where there are few


@dataclass(frozen=True)
class Case:
    name: str
    original: Path
    kmeans: Path  # of the fairseq features of `layer`
    layer: int
    folder: Path  # what `speechgpt convert` made of both


@pytest.fixture(scope="module", params=HUBERTS)
def case(request, tmp_path_factory):
    """A checkpoint, and K centroids that are frames of its own: near to what they judge and to each other."""
    folder = tmp_path_factory.mktemp("hubert")
    original = write_hubert(folder / "checkpoint.pt", HUBERTS[request.param])
    judge = FairseqHubert.load(original, "cpu")
    layer = LAYER.get(request.param, judge.num_layers - 1)
    (features,) = judge.features(synthetic(400 + 320 * (K - 1), 99), (layer,))  # K D
    kmeans = folder / f"hubert_L{layer}_km{K}.bin"
    write_kmeans(kmeans, features.numpy(), compress=3 if request.param == "base" else 0)
    converted = folder / "converted"
    assert main(["convert", str(original), str(kmeans), "--out", str(converted)]) == 0
    yield Case(request.param, original, kmeans, layer, converted)
    original.unlink()  # hundreds of megabytes
    for weights in converted.rglob("*.safetensors"):
        weights.unlink()


@pytest.fixture(scope="module")
def judge(case):
    return FairseqHubert.load(case.original, "cpu")


@pytest.fixture(scope="module")
def ours(case):
    return Encoder.load(case.folder / "encoder", "cpu")


def test_every_layer_is_fairseqs_and_no_other(case, judge, ours):
    assert ours.normalize == judge.normalize == HUBERTS[case.name].normalize
    assert ours.num_layers == judge.num_layers
    lengths = (*LENGTHS, LONG) if case.name == "base" else LENGTHS
    for seed, samples in enumerate(lengths):
        waveform = synthetic(samples, seed)
        reference, found = judge.features(waveform), all_features(ours, waveform)
        for number, (r, f) in enumerate(zip(reference, found, strict=True), 1):
            assert len(r) == (samples - 400) // 320 + 1
            assert relative_error(r, f) <= FEATURE_LIMIT, f"{samples} samples, layer {number}"
        for r, f in zip(reference[1:], found, strict=False):  # a layer off by one
            assert relative_error(r, f) > 1000 * FEATURE_LIMIT


def test_units_are_fairseqs_beyond_the_margin(case, judge, ours):
    codebook = Codebook.load(case.folder / "codebook.safetensors")
    codebook.check(ours, case.layer)
    reference = FairseqUnits(judge, read_centroids(read_inert(case.kmeans), "kmeans"), case.layer)
    waveform = synthetic(96_000, 5)
    r, f = judge.features(waveform, (case.layer,))[0], ours.features([waveform], case.layer)[0]
    found = compare_units(r, f, reference.centroids, reference.assign(r), codebook.assign(f))
    assert found.over == 0
    assert found.decided > 0.9 * found.frames, found  # a margin that covers everything would prove nothing
    assert len(reference.assign(r).unique()) > 30
    assert units_verdict(found, reference).passed
    # The neighbouring layer: many units stay in a residual network, yet far more than none differ,
    # and an error of that size is no excuse for them.
    (wrong,) = judge.features(waveform, (case.layer + 1,))
    decided = decided_frames(r, f, reference.centroids)
    assert (codebook.assign(wrong) != reference.assign(r))[decided].float().mean() > 0.1
    found = compare_units(r, wrong, reference.centroids, reference.assign(r), codebook.assign(wrong))
    assert not units_verdict(found, reference).passed
    with pytest.raises(ValueError, match="expected rising numbers from 1"):
        judge.features(waveform, (0,))


def test_the_command_gives_fairseqs_units(case, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SPEECHGPT_CACHE", str(tmp_path / "cache"))
    paths = [str(tmp_path / f"{n}.wav") for n in range(2)]
    for seed, path in enumerate(paths):
        write_wav(path, synthetic(20_000 + 5_000 * seed, seed))
    files = ["--encoder", str(case.original), "--codebook", str(case.kmeans), "--device", "cpu"]
    assert main(["encode", *paths, *files, "--backend", "fairseq"]) == 0
    theirs = capsys.readouterr()
    assert theirs.out.count("<sosp>") == 2 and len(theirs.out.splitlines()) == 2  # none of fairseq's chatter
    assert main(["encode", *paths, *files]) == 0
    assert capsys.readouterr().out == theirs.out


# How a conversion can go wrong and still load: of the converted weights, and of the settings beside them.
def swap_projections(weights: dict) -> None:
    names = ["encoder.layers.0.attention.q_proj.weight", "encoder.layers.0.attention.v_proj.weight"]
    weights[names[0]], weights[names[1]] = (weights[n].clone() for n in reversed(names))


def swap_norms(weights: dict) -> None:
    names = ["encoder.layers.0.layer_norm.weight", "encoder.layers.0.final_layer_norm.weight"]
    weights[names[0]], weights[names[1]] = (weights[n].clone() for n in reversed(names))


def forget_gain(weights: dict) -> None:
    gain, direction = (f"encoder.pos_conv_embed.conv.parametrizations.weight.original{n}" for n in (0, 1))
    weights[gain] = torch.ones_like(weights[gain]) * weights[direction].norm(dim=(0, 1)).mean()


def flip_gain(weights: dict) -> None:
    gain = "encoder.pos_conv_embed.conv.parametrizations.weight.original0"
    weights[gain] = weights[gain].flip(-1)


@pytest.mark.parametrize("spoil", [swap_projections, swap_norms, forget_gain, flip_gain])
def test_a_wrong_conversion_is_noticed(case, tmp_path, judge, spoil):
    weights = load_file(case.folder / "encoder" / "model.safetensors")
    spoil(weights)
    wrong = tmp_path / "encoder"
    wrong.mkdir()
    save_file(weights, wrong / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "encoder.json"):
        (wrong / name).write_bytes((case.folder / "encoder" / name).read_bytes())
    waveform = synthetic(8_000)
    found = all_features(Encoder.load(wrong, "cpu"), waveform)
    errors = [relative_error(r, f) for r, f in zip(judge.features(waveform), found, strict=True)]
    assert min(errors) > 10 * FEATURE_LIMIT
    (wrong / "model.safetensors").unlink()


def test_the_wrong_normalize_is_noticed(case, judge, ours):
    waveform = synthetic(8_000)
    ours.normalize = not ours.normalize
    try:
        found = all_features(ours, waveform)
    finally:
        ours.normalize = not ours.normalize
    assert relative_error(judge.features(waveform)[-1], found[-1]) > 10 * FEATURE_LIMIT


def test_exchanged_gain_and_direction_do_not_even_load(case, tmp_path, capsys):
    state = torch.load(case.original, weights_only=False)
    gain, direction = (f"encoder.pos_conv.0.weight_{letter}" for letter in "gv")
    weights = state["model"]
    weights[gain], weights[direction] = weights[direction], weights[gain]
    torch.save({name: state[name] for name in ("args", "cfg", "model")}, tmp_path / "wrong.pt")
    assert main(["convert", str(tmp_path / "wrong.pt"), "--out", str(tmp_path / "out")]) == 2
    assert "pos_conv_embed" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "wrong.pt").unlink()


def test_verify_prints_the_table_and_fails_a_wrong_folder(case, tmp_path, capsys, monkeypatch):
    if case.name != "large":
        pytest.skip("one checkpoint is enough for the command, and this is the smallest")
    write_wav(tmp_path / "said.wav", verify.synthetic(24_000, 3))
    arguments = ["convert", str(case.original), str(case.kmeans), "--out", str(case.folder), "--verify"]
    assert main([*arguments, "--audio", str(tmp_path / "said.wav")]) == 0
    out = capsys.readouterr().out
    assert "encoder, layer 2" in out and "8 waveforms" in out and "0 beyond" in out and "FAILED" not in out
    path = case.folder / "encoder" / "model.safetensors"
    kept = path.read_bytes()
    weights = load_file(path)
    swap_projections(weights)
    save_file(weights, path, metadata={"format": "pt"})
    monkeypatch.setattr(verify, "SAMPLES", (8_000,))
    try:
        assert main(arguments) == 2
    finally:
        path.write_bytes(kept)
    assert "FAILED" in capsys.readouterr().out
