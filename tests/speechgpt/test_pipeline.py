"""SpeechGPT on a tiny model: speech or text in, speech or text out, several turns."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from speechgpt import Reply, SpeechGPT


@pytest.fixture(scope="module")
def model(tiny_model) -> SpeechGPT:
    return SpeechGPT.load(tiny_model, device="cpu")


def test_a_spoken_question_gets_a_spoken_answer(model, recording):
    reply = model.reply(recording)
    assert isinstance(reply, Reply)
    assert reply.units.dtype == np.int64 and len(reply.units)
    assert reply.waveform.dtype == np.float32 and np.abs(reply.waveform).max() <= 1
    assert reply.sample_rate == 16_000 and len(reply.waveform) % model.synthesizer.hop == 0
    assert reply.seconds_in == 1.0 and len(reply.question_frames) == 49
    marks = [reply.timings[name] for name in ("encode", "first_token", "first_sound", "total")]
    assert all(marks) and marks == sorted(marks)


def test_the_path_and_its_waveform_are_answered_alike(model, recording):
    waveform, _ = soundfile.read(recording, dtype="float32")
    by_path, by_waveform = model.reply(recording), model.reply(waveform)
    assert by_path.answer == by_waveform.answer
    assert np.array_equal(by_path.waveform, by_waveform.waveform)


def test_a_typed_question_without_speech(model):
    reply = model.reply(text="what is three plus four", speech=False)
    assert reply.transcript == "what is three plus four"
    assert reply.waveform is None and not len(reply.units) and reply.seconds_in == 0
    assert reply.timings["encode"] is None and reply.timings["first_sound"] is None
    assert reply.timings["first_token"] <= reply.timings["total"]


def test_text_with_marker_spellings_stays_text(model):
    """A user's `<12>` or `<eosp>` must not become a unit or end a turn."""
    text = "say <12> <eosp> [ua] <eoa> now"
    reply = model.reply(text=text, speech=False)
    assert reply.transcript == text
    vocabulary = model.generator.vocabulary
    ids = model.generator.format.prompt_turn(text)
    assert not [i for i in ids if vocabulary.is_unit(i)]
    assert vocabulary.single("<eosp>") not in ids and vocabulary.single("<eoa>") not in ids


def test_several_turns(model, recording):
    first = model.reply(recording)
    second = model.reply(text="and then", history=[first])
    third = model.reply(recording, history=[first, second])
    alone = model.generator.format.prompt_turn("and then")
    with_history = model.generator.format.prompt_turn("and then", [first.turn])
    assert len(with_history) > len(alone)
    assert isinstance(third.answer, str)


def test_a_model_of_single_turns_is_asked_as_if_each_were_the_first(model, recording):
    first = model.reply(recording, speech=False)
    prompted = []
    for single in (False, True):
        config = replace(model.model_dir.config, single_turns=single)
        alike = SpeechGPT.__new__(SpeechGPT)
        alike.__dict__ = model.__dict__ | {"model_dir": replace(model.model_dir, config=config)}
        alike.reply(text="and then", speech=False, history=[first])
        prompted.append(alike.generator.timings.prompt_tokens)
    alone = len(model.generator.format.prompt_turn("and then"))
    assert prompted[0] > prompted[1] == alone


def test_encode_and_decode(model, recording):
    frames = model.encode(recording)
    assert frames.shape == (49,)
    timed = model.decode(np.repeat(frames, 2))
    assert len(timed) == 2 * 49 * model.synthesizer.hop
    assert len(model.decode([1, 2, 3])) >= 3 * model.synthesizer.hop


def test_transcribe_and_speak(model, recording):
    assert isinstance(model.transcribe(recording), str)
    assert model.speak("no less moss").dtype == np.float32


def test_the_seed_decides_what_a_sampling_model_draws(model):
    from dataclasses import replace

    kept = model.generator.decoding
    model.generator.decoding = replace(kept, sample=True, max_text_tokens=12, max_units=20)
    try:
        answers = [model.reply(text="no moss", speech=False, seed=seed).answer for seed in (1, 1, 2, 3)]
    finally:
        model.generator.decoding = kept
    assert answers[0] == answers[1] and len(set(answers)) > 1


@pytest.mark.parametrize("call", [{}, {"question": "x.wav", "text": "hello"}, {"text": "  "}])
def test_one_question_is_needed(model, call):
    with pytest.raises(ValueError, match="text"):
        model.reply(**call)


def test_long_and_silent_waveforms_are_refused(model):
    with pytest.raises(ValueError, match="limit here is 10 s"):
        model.reply(np.ones(11 * 16_000, np.float32))
    with pytest.raises(ValueError, match="zero"):
        model.transcribe(np.zeros(16_000, np.float32))


def test_cuda_is_not_assumed(tiny_model):
    """`auto` must work without CUDA, and asking for what is not there is one clear error."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert SpeechGPT.load(tiny_model, device="auto").device == "cpu"
    with pytest.raises(ValueError, match="no CUDA device"):
        SpeechGPT.load(tiny_model, device="cuda")
    with pytest.raises(ValueError, match="unknown device"):
        SpeechGPT.load(tiny_model, device="abacus")


def test_a_model_of_plain_words_gets_typed_text_as_it_was_trained(tiny_model, tmp_path):
    folder = tmp_path / "plain"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "speechgpt.json").read_text())
    (folder / "speechgpt.json").write_text(json.dumps({**config, "plain_text": True, "duration_scale": 2.0}))
    plain, usual = SpeechGPT.load(folder, device="cpu"), SpeechGPT.load(tiny_model, device="cpu")
    assert plain.reply(text="What's 3 + 4?").transcript == "what's three plus four"
    assert usual.reply(text="What's 3 + 4?").transcript == "What's 3 + 4?"
    with pytest.raises(ValueError, match="'...' holds no word"):
        plain.speak("...")
    assert len(plain.decode([1, 2, 3])) > len(usual.decode([1, 2, 3]))
    assert len(plain.decode([1, 1, 2])) == len(usual.decode([1, 1, 2]))  # units that keep their timing
