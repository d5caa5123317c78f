"""The model directory: its format, looking one up, assembling one, and refusing parts that do not fit."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file

from speechgpt import SpeechGPT, model_dir
from speechgpt.assemble import ModelSettings, main, sizes
from speechgpt.model_dir import MODEL_FILE, ModelConfig, find_model
from speechgpt.units.codebook import Codebook
from speechgpt.units.encoder import Encoder

from ..conftest import OF_25_HZ, tiny_vocoder

PRESETS = Path(model_dir.__file__).parent / "presets"


def arguments(parts: dict[str, Path], out: Path, config: Path, **more) -> list[str]:
    given = {**parts, "out": out, "config": config, **more}
    return [a for name, value in given.items() for a in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def settings(tmp_path) -> Path:
    path = tmp_path / "model.yaml"
    path.write_text("name: small\nlicence: CC0\nmax_question_seconds: 12\ndecoding: {max_units: 20}\n")
    return path


def test_assembling_halves_the_weights_and_keeps_the_model(
    tiny_parts, tiny_model, settings, recording, tmp_path, capsys
):
    question = tmp_path / "asked.wav"
    shutil.copy(recording, question)
    out = tmp_path / "small"
    assert main(arguments(tiny_parts, out, settings, question=question)) == 0
    assert "all" in capsys.readouterr().out
    config = json.loads((out / MODEL_FILE).read_text())
    assert config["name"] == "small" and config["layer"] == 2 and config["licence"] == "CC0"
    assert config["decoding"] == {"max_units": 20} and config["provenance"]["codebook"]["k"] == 12
    for part in ("encoder", "llm", "vocoder"):
        weights = load_file(out / part / "model.safetensors")
        assert {str(w.dtype) for w in weights.values()} == {"float16"}, part
    assert not [
        name for name in load_file(out / "encoder" / "model.safetensors") if "encoder.layers.2." in name
    ]
    assert (out / "question.wav").read_bytes() == question.read_bytes()
    assert sizes(out)["all"] == sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    # The codebook goes with its encoder's rounded copy, and units hardly change.
    half, full = SpeechGPT.load(out, "cpu"), SpeechGPT.load(tiny_model, "cpu")
    assert np.mean(half.encode(recording) == full.encode(recording)) > 0.9
    assert half.reply(recording).waveform is not None


def test_assembling_again_keeps_what_else_is_there(tiny_parts, settings, tmp_path):
    out = tmp_path / "small"
    assert main(arguments(tiny_parts, out, settings)) == 0
    (out / "MODEL_CARD.md").write_text("# Card\n")
    (out / "llm" / "old.txt").write_text("of an earlier model")
    assert main(arguments(tiny_parts, out, settings)) == 0
    assert (out / "MODEL_CARD.md").exists() and not (out / "llm" / "old.txt").exists()
    assert not list(tmp_path.glob(".*"))


def test_the_prefix_is_that_of_the_last_stage(tiny_parts, settings, tmp_path):
    stage = tmp_path / "stage3.yaml"
    stage.write_text("stage: 3\nmax_length: 100\nprefix: published\n")
    out = tmp_path / "small"
    assert main(arguments(tiny_parts, out, settings, stage_config=stage)) == 0
    assert find_model(out).config.prefix.startswith("You are an AI assistant whose name is SpeechGPT.")
    generator = find_model(out).load_generator("cpu")
    assert generator.format.prefix == find_model(out).config.prefix


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("codebook", "the codebook is of encoder"),
        ("encoder", "the codebook is of encoder"),
        ("llm", "has 12 units"),
        ("vocoder", "has 12 units"),
    ],
)
def test_mixed_parts_are_refused_by_name(part, says, tiny_parts, other_parts, settings, tmp_path):
    mixed = {**tiny_parts, part: other_parts[part]}
    with pytest.raises(ValueError, match="the parts do not belong together") as error:
        main(arguments(mixed, tmp_path / "mixed", settings))
    assert says in str(error.value) and str(other_parts[part]) in str(error.value)
    assert not (tmp_path / "mixed").exists() and not list(tmp_path.glob(".*"))


def test_a_vocoder_of_another_codebook_is_refused(tiny_parts, settings, tmp_path):
    """Equal sizes do not make equal units."""
    vocoder = shutil.copytree(tiny_parts["vocoder"], tmp_path / "vocoder")
    config = json.loads((vocoder / "config.json").read_text())
    config["codebook"]["encoder"] = "0" * 64
    (vocoder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="speaks units of encoder 0000"):
        main(arguments({**tiny_parts, "vocoder": vocoder}, tmp_path / "mixed", settings))


def test_a_codebook_that_an_encoder_was_trained_to_keeps_its_vocoder(
    tiny_parts, other_parts, settings, tmp_path
):
    codebook, encoder = Codebook.load(tiny_parts["codebook"]), Encoder.load(other_parts["encoder"])
    encoder.save(tmp_path / "encoder")
    codebook.kept_for(encoder).save(tmp_path / "kept.safetensors")
    refined = {**tiny_parts, "encoder": tmp_path / "encoder", "codebook": tmp_path / "kept.safetensors"}
    vocoder = shutil.copytree(tiny_parts["vocoder"], tmp_path / "vocoder")
    config = json.loads((vocoder / "config.json").read_text())
    config["codebook"]["sha256"] = hashlib.sha256(tiny_parts["codebook"].read_bytes()).hexdigest()
    (vocoder / "config.json").write_text(json.dumps(config))
    assert main(arguments({**refined, "vocoder": vocoder}, tmp_path / "model", settings)) == 0
    moved = Codebook(codebook.centroids + 1, codebook.provenance).kept_for(encoder)
    moved.save(tmp_path / "kept.safetensors")
    with pytest.raises(ValueError, match="speaks units of sha256"):
        main(arguments({**refined, "vocoder": vocoder}, tmp_path / "mixed", settings))


def test_an_adapter_alone_is_no_model(tiny_parts, settings, tmp_path):
    adapter = tmp_path / "stage3"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="merge-lora"):
        main(arguments({**tiny_parts, "llm": adapter}, tmp_path / "mixed", settings))


def test_a_folder_of_other_things_is_not_replaced(tiny_parts, settings, tmp_path):
    out = tmp_path / "precious"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds no model"):
        main(arguments(tiny_parts, out, settings))
    assert (out / "thesis.txt").exists()


def test_names_are_looked_up_in_the_package(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(model_dir, "MODELS", tiny_model.parent)
    assert model_dir.known_models() == ["tiny"]
    assert find_model("tiny").path == tiny_model
    with pytest.raises(ValueError, match=r"unknown model 'huge' .*known models: tiny"):
        find_model("huge")
    with pytest.raises(ValueError, match="folder without speechgpt.json"):
        find_model(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"format": 2, "name": "x"}', "format 2"),
        ('{"format": 1, "name": "x", "colour": 1}', "unknown field colour"),
        ('{"format": 1}', "name is missing"),
        ("[]", "list"),
        ("{", "not valid JSON"),
    ],
)
def test_broken_descriptions_are_refused(content, says, tmp_path):
    (tmp_path / MODEL_FILE).write_text(content)
    with pytest.raises(ValueError, match=says) as error:
        ModelConfig.read(tmp_path / MODEL_FILE)
    assert str(tmp_path) in str(error.value)


def test_missing_parts_are_listed(tmp_path):
    (tmp_path / MODEL_FILE).write_text('{"format": 1, "name": "x"}')
    (tmp_path / "llm").mkdir()
    with pytest.raises(ValueError, match="encoder, codebook.safetensors, vocoder"):
        find_model(tmp_path)


@pytest.mark.parametrize("preset", ["toy", "mini", "speechgpt-7b"])
def test_presets_are_valid(preset):
    from speechgpt.evaluate import EvalConfig
    from speechgpt.generate import Decoding

    found = ModelSettings.load(PRESETS / preset / "model.yaml")
    assert found.name == preset
    Decoding.from_dict(found.decoding)
    EvalConfig.load(PRESETS / preset / "eval.yaml")


def test_unknown_decoding_is_refused(tiny_parts, tmp_path):
    settings = tmp_path / "model.yaml"
    settings.write_text("name: x\ndecoding: {heat: 1}\n")
    with pytest.raises(ValueError, match="unknown heat"):
        main(arguments(tiny_parts, tmp_path / "x", settings))


def test_recordings_in_the_package_are_readable():
    for name in model_dir.known_models():
        question = find_model(name).path / "question.wav"
        assert soundfile.info(question).duration > 0.5


def test_others_may_read_a_model(tiny_model):
    for path in tiny_model.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_a_vocoder_of_another_frame_rate_is_refused(tiny_model, tmp_path):
    """50 frames a second from the encoder, 25 into the vocoder: speech of twice the length, and no error."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    shutil.rmtree(folder / "vocoder")
    tiny_vocoder(**OF_25_HZ).save(folder / "vocoder")
    with pytest.raises(ValueError, match="speaks 25 frames a second, .*encoder makes 50; train .* 320"):
        find_model(folder).load_synthesizer("cpu")
