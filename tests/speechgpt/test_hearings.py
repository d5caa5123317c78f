"""A recording heard several times: what the averages are, and that every way of decoding uses them."""

import json
import shutil
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from speechgpt import SpeechGPT
from speechgpt.averaged_scores import AveragedBeams, run_of_hearings
from speechgpt.data.audio import RECEPTIVE_FIELD
from speechgpt.decoding import Decoding
from speechgpt.events import Reply
from speechgpt.generate import Generator
from speechgpt.grammar import turn_machine
from speechgpt.hearings import SPEEDS, Hearings, at_speeds, heard, hearings_of
from speechgpt.model_dir import find_model
from speechgpt.prompts import PromptFormat

MINI = Path(__file__).parents[2] / "speechgpt" / "models" / "mini"
LIMITS = {"max_new_tokens": 48, "max_units": 8, "max_text_tokens": 6}
GREEDY = Decoding(**LIMITS)
SAMPLED = Decoding(sample=True, temperature=0.8, top_k=60, top_p=0.8, seed=3, **LIMITS)
UNITS = [1, 2, 3, 7, 9]
OTHERS = Hearings((UNITS, [4, 5, 6, 11, 3, 2, 8], [12, 3]))  # of three lengths: two prompts are padded


def generator_of(vocabulary, decoding: Decoding = GREEDY) -> Generator:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary.size + 3, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=256, bos_token_id=vocabulary.bos_id,
        eos_token_id=vocabulary.eos_id, pad_token_id=vocabulary.pad_id, initializer_range=0.3,
    )  # fmt: skip
    return Generator(LlamaForCausalLM(config).eval(), PromptFormat(vocabulary), decoding)


@pytest.fixture
def generator(vocabulary) -> Generator:
    return generator_of(vocabulary)


def under(generator: Generator, decoding: Decoding) -> Generator:
    return Generator(generator.model, generator.format, decoding)


@torch.no_grad()
def mean_scores(generator: Generator, prompts: list[list[int]], said: list[int]) -> torch.Tensor:
    """(V,): log-probabilities after `said`, each hearing computed by transformers alone and unpadded; the
    first hearing's, once the answer's units have begun."""
    if generator.vocabulary.single("<sosp>") in said:
        prompts = prompts[:1]
    rows = [generator.model(torch.tensor([prompt + said])).logits[0, -1] for prompt in prompts]
    return torch.stack([row - row.exp().sum().log() for row in rows]).mean(0)


def allowed(generator: Generator, kind: str, said: list[int], limit: int, scores: torch.Tensor):
    """The scores (V,) after the grammar, and whether the turn has ended."""
    machine = turn_machine(generator.vocabulary, kind, generator.decoding.limits)
    state = machine.start
    for token in said:
        state = machine.advance(state, token)
    return machine.filter([state], limit - len(said), scores[None])[0], machine.finished(state)


def prompts_of(generator: Generator, kind: str, question: Hearings) -> list[list[int]]:
    if kind == "asr":
        return [generator.format.prompt_asr(u, generator.asr_description) for u in question.units]
    return [generator.format.prompt_turn(u) for u in question.units]


def greedy_reference(generator: Generator, kind: str, question: Hearings) -> list[int]:
    prompts, said, limit = prompts_of(generator, kind, question), [], LIMITS["max_new_tokens"]
    while True:
        scores, ended = allowed(generator, kind, said, limit, mean_scores(generator, prompts, said))
        if ended:
            return said
        said.append(int(scores.argmax()))


def beam_reference(generator: Generator, kind: str, question: Hearings, beams: int, limit: int) -> list[int]:
    """A beam search over the averaged scores alone, with no batch and no rows of hearings."""
    prompts, alive, done = prompts_of(generator, kind, question), [(0.0, [])], []
    while alive:
        grown = []
        for total, said in alive:
            scores, _ = allowed(generator, kind, said, limit, mean_scores(generator, prompts, said))
            best = scores.topk(2 * beams)
            grown += [
                (total + float(s), [*said, int(t)]) for s, t in zip(*best, strict=True) if s > -torch.inf
            ]
        grown = sorted(grown, key=lambda pair: -pair[0])[: 2 * beams]
        ended = [said[-1] == generator.vocabulary.eos_id for _, said in grown]
        done += [
            (total / len(said), said) for (total, said), end in zip(grown[:beams], ended, strict=False) if end
        ]
        alive = [pair for pair, end in zip(grown, ended, strict=True) if not end][:beams]
        done = sorted(done)[-beams:]
        # As transformers stops: enough have ended, and none that goes on is better than the worst of them.
        if len(done) == beams and alive and alive[0][0] / len(alive[0][1]) <= done[0][0]:
            break
    return done[-1][1]


def test_beams_see_log_probabilities_averaged_within_a_question():
    scores = torch.randn(2 * 3 * 2, 7, generator=torch.Generator().manual_seed(0)) * 4
    ids = torch.full((12, 5), 1)
    ids[:, 2] = 6  # units of the question are no units of the answer
    ids[[7, 9, 11], 4] = 6  # the second question's second beam speaks
    found = AveragedBeams(3, 2, prompt_length=3, speech_starts=6)(ids, scores).view(2, 3, 2, 7)
    for question in range(2):
        for beam in range(2):
            rows = [scores[question * 6 + hearing * 2 + beam] for hearing in range(3)]
            rows = rows[:1] if (question, beam) == (1, 1) else rows
            wanted = sum(row - row.exp().sum().log() for row in rows) / len(rows)
            assert torch.allclose(found[question, :, beam], wanted.expand(3, -1), atol=1e-6)
    assert AveragedBeams(1, 2, 3, 6)(ids, scores) is scores


def test_speeds_begin_with_the_recording_as_it_is(make_tone):
    waveform = make_tone(1.0)
    copies = at_speeds(waveform, 16_000, len(SPEEDS))
    assert copies[0] is waveform and len(set(SPEEDS)) == len(SPEEDS) and SPEEDS[0] == 1
    for speed, copy in zip(SPEEDS, copies, strict=True):
        assert copy.dtype == np.float32 and abs(len(copy) - len(waveform) / speed) <= 2
    whole = np.sin(2 * np.pi * 500 * np.arange(16_000) / 16_000).astype(np.float32)
    for speed, copy in zip(SPEEDS, at_speeds(whole, 16_000, len(SPEEDS)), strict=True):
        peak = np.abs(np.fft.rfft(copy)).argmax() * 16_000 / len(copy)
        assert peak == pytest.approx(500 * speed, abs=1.5)
    assert len(at_speeds(whole, 16_000, 1)) == 1


def test_the_shortest_recording_is_heard_at_every_speed(tiny_model, make_tone):
    model = SpeechGPT.load(tiny_model, device="cpu")
    ((frames, asked),) = heard(model.encoder, [make_tone(1.0)[:RECEPTIVE_FIELD]], len(SPEEDS))
    assert len(frames) == 1 and [len(units) for units in asked.units] == [1] * len(SPEEDS)


def test_frames_are_of_the_recording_as_it_is(tiny_model, make_tone):
    model = SpeechGPT.load(tiny_model, device="cpu")
    waveforms = [make_tone(1.0), make_tone(0.7, 90)]
    once, thrice = (heard(model.encoder, waveforms, times) for times in (1, 3))
    for waveform, (frames, units), (same, asked) in zip(waveforms, once, thrice, strict=True):
        assert np.array_equal(frames, same) and asked.units[0] == units
        assert units == [unit for unit, _ in groupby(frames.tolist())]
        for copy, found in zip(at_speeds(waveform, 16_000, 3), asked.units, strict=True):
            assert found == [unit for unit, _ in groupby(model.encoder.encode([copy])[0].tolist())]


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED, Decoding(beams=3, **LIMITS)], ids=str)
def test_equal_hearings_are_one_hearing(generator, decoding):
    generator = under(generator, decoding)
    for out in ("speech", "text"):
        wanted = generator.turn(UNITS, out)
        assert generator.turn(Hearings((UNITS,)), out) == wanted
        assert generator.turn(Hearings((UNITS,) * 3), out) == wanted
    wanted = generator.transcribe(UNITS)
    assert generator.transcribe(Hearings((UNITS,))) == wanted
    assert generator.transcribe(Hearings((UNITS,) * 4)) == wanted


@pytest.mark.parametrize("kind", ["asr", "speech-text", "speech-speech"])
def test_greedy_takes_the_likeliest_by_the_average(generator, kind):
    prompts = prompts_of(generator, kind, OTHERS)
    wanted = greedy_reference(generator, kind, OTHERS)
    assert generator.generate_batch(prompts, kind, hearings=3) == [wanted]
    assert generator.generate_batch(prompts[:1], kind) != [wanted]  # the others were heard too


@pytest.mark.parametrize("beams", [2, 3])
@pytest.mark.parametrize("kind", ["asr", "speech-text", "speech-speech"])
def test_beams_are_ranked_by_the_average(generator, kind, beams):
    limit = 30
    searching = under(generator, Decoding(**{**LIMITS, "max_new_tokens": limit, "beams": beams}))
    found = searching.generate_batch(prompts_of(generator, kind, OTHERS), kind, hearings=3)
    assert found == [beam_reference(searching, kind, OTHERS, beams, limit)]


def test_beams_of_a_questions_hearings_stay_alike(generator, monkeypatch):
    """What `AveragedBeams` says of the rows, looked at after every step."""
    searching, seen = under(generator, Decoding(beams=4, **LIMITS)), []
    length = max(len(prompt) for prompt in prompts_of(generator, "speech-speech", OTHERS))
    rule = AveragedBeams.__call__

    def looked_at(self, input_ids, scores):
        said = input_ids[:, length:].unflatten(0, (-1, 3, 4))
        assert (said == said[:, :1]).all()
        seen.append(len({tuple(beam) for beam in said[0, 0].tolist()}))
        return rule(self, input_ids, scores)

    monkeypatch.setattr(AveragedBeams, "__call__", looked_at)
    questions = [OTHERS, Hearings(OTHERS.units[::-1])]
    assert searching.turn_batch(questions)[0] == searching.turn(OTHERS)
    assert len(seen) > 20 and max(seen) > 1


def test_batches_and_streams_equal_single_calls(generator):
    other = Hearings(([3, 1], [2, 9, 4], [5]))
    pair = Hearings(([3, 1], [2, 9, 4]))
    mixed = [OTHERS, [4, 5, 6], "hi", other, pair, UNITS]
    for out in ("speech", "text"):
        assert generator.turn_batch(mixed, out) == [generator.turn(question, out) for question in mixed]
        assert generator.turn_batch(mixed, out, batch_size=2) == generator.turn_batch(mixed, out)
    spoken = [question for question in mixed if question != "hi"]
    assert generator.transcribe_batch(spoken) == [generator.transcribe(question) for question in spoken]
    for decoding in (GREEDY, SAMPLED):
        own, tokens = under(generator, decoding), []
        whole = own.turn(OTHERS, on_token=tokens.append)
        parts = list(own.stream_turn(OTHERS))
        assert own.format.parse(tokens) == whole and whole.complete
        assert "".join(part.text for part in parts if part.section == "transcript") == whole.transcript
        assert "".join(part.text for part in parts if part.section == "answer") == whole.answer
        assert [part.unit for part in parts if part.section == "units"] == whole.units
        assert own.timings.new_tokens == len(tokens)


def test_the_first_hearing_says_the_units_alone(generator, monkeypatch):
    rows, run = [], generator.engine.run
    monkeypatch.setattr(
        generator.engine, "run", lambda prompts, new: rows.append(prompts) or run(prompts, new)
    )
    turn = generator.turn(OTHERS)
    whole, alone = rows
    assert whole == prompts_of(generator, "speech-speech", OTHERS)
    (said,) = alone
    assert said[: len(whole[0])] == whole[0] and said[-1] == generator.vocabulary.single("<sosp>")
    assert len(turn.units) and generator.timings.reused_tokens == 0
    generator.turn(OTHERS, "text")
    assert len(rows) == 3


def test_questions_that_begin_to_speak_at_different_steps(generator):
    v = generator.vocabulary
    speaks, unit, text = v.single("<sosp>"), v.units_to_ids([3])[0], v.encode_text("on")[0]
    forced = zip([text, text, text, speaks, unit, unit], [text, speaks, unit, unit, unit, text], strict=True)
    questions = [Hearings(OTHERS.units[:2]), Hearings(([3, 1], [2, 9, 4]))]
    prompts = [prompts_of(generator, "speech-speech", question) for question in questions]
    said: list[list[int]] = [[], []]
    with torch.inference_mode(), run_of_hearings(generator.engine, sum(prompts, []), 2, 40, speaks) as run:
        for tokens in forced:
            found = run.logits().log_softmax(-1)  # means of log-probabilities are none themselves
            for question in range(2):
                wanted = mean_scores(generator, prompts[question], said[question]).log_softmax(-1)
                assert torch.allclose(found[question], wanted, atol=1e-4)
            assert run.take(torch.tensor(tokens), True) == list(tokens)
            for ids, token in zip(said, tokens, strict=True):
                ids.append(token)


def test_captured_steps_average_too(native):
    """The steps that a GPU replays, without the capture."""
    plain = generator_of(native)
    captured = Generator(plain.model, plain.format, GREEDY)
    prompts = prompts_of(plain, "speech-speech", OTHERS)
    from speechgpt import decode_engine
    from speechgpt.decode_steps import CapturedSteps

    kept = decode_engine.steps_of
    decode_engine.steps_of = lambda decoder, cache, fast: CapturedSteps(decoder, cache, "graph")
    try:
        found = captured.generate_batch(prompts, "speech-speech", hearings=3)
    finally:
        decode_engine.steps_of = kept
    assert found == plain.generate_batch(prompts, "speech-speech", hearings=3)


def test_settings_are_checked(generator):
    assert Decoding().hearings == 1 and Decoding.from_dict({"hearings": len(SPEEDS)}).hearings == len(SPEEDS)
    for wrong in (0, -1, len(SPEEDS) + 1, 1.5, "3"):
        with pytest.raises(ValueError, match=f"hearings {wrong}; expected 1 to {len(SPEEDS)}"):
            Decoding(hearings=wrong)
    for beams in ({"beams": 2}, {"asr_beams": 2}):
        assert Decoding(sample=True, **beams).hearings == 1
        with pytest.raises(ValueError, match="hearings 2: each hearing would draw"):
            Decoding(sample=True, hearings=2, **beams)
    drawing = under(generator, Decoding(sample=True, beams=2, **LIMITS))
    with pytest.raises(ValueError, match="3 hearings with sampling by beams"):
        drawing.turn(OTHERS)
    with pytest.raises(ValueError, match="question is empty"):
        generator.turn(Hearings((UNITS, [])))
    with pytest.raises(ValueError, match="without hearings"):
        Hearings(())
    assert hearings_of("hi") == ("hi",) and hearings_of(OTHERS) == OTHERS.units


def copied(folder: Path, to: Path, **decoding) -> Path:
    """A model that decodes otherwise; its parts are those of the other."""
    to.mkdir()
    for part in folder.iterdir():
        if part.name != "speechgpt.json":
            (to / part.name).symlink_to(part)
    config = json.loads((folder / "speechgpt.json").read_text())
    config["decoding"] |= decoding
    (to / "speechgpt.json").write_text(json.dumps(config))
    return to


def test_mini_hears_three_times(tmp_path):
    mini = SpeechGPT.load(copied(MINI, tmp_path / "mini", hearings=3, asr_hearings=0), device="cpu")
    calls = []
    encode = mini.encoder.encode
    mini.encoder.encode = lambda waveforms, *rest: calls.append(len(waveforms)) or encode(waveforms, *rest)
    events = list(mini.stream_reply(MINI / "question.wav"))
    reply = events[-1]
    assert calls == [3] and isinstance(reply, Reply)
    assert reply.transcript == "can i have a large cappuccino with some milk"
    assert reply.answer == "okay here is your order a large cappuccino with some milk"
    assert np.array_equal(reply.question_frames, mini.encode(MINI / "question.wav"))
    assert reply.turn[0] == [unit for unit, _ in groupby(reply.question_frames.tolist())]
    assert mini.transcribe(MINI / "question.wav") == reply.transcript and calls[-1] == 3
    sooner = replace(mini.generator.decoding, hearings=1)
    whole = mini.generator
    whole.decoding = sooner
    once = mini.reply(MINI / "question.wav")
    assert calls[-1] == 1 and np.array_equal(once.question_frames, reply.question_frames)
    assert once.answer == reply.answer and once.turn[0] == reply.turn[0]


def test_a_history_keeps_the_first_hearing(tiny_model, tmp_path, recording):
    model = SpeechGPT.load(copied(tiny_model, tmp_path / "tiny", hearings=3), device="cpu")
    first = model.reply(recording)
    assert isinstance(first.turn[0], list)
    second = model.reply(recording, history=[first], speech=False)
    prompts = [model.generator.format.prompt_turn(first.turn[0], history) for history in ([], [first.turn])]
    assert len(prompts[1]) > len(prompts[0])
    assert model.generator.timings.prompt_tokens >= len(prompts[1]) and second.answer


def test_a_model_of_beams_answers_and_warms_up(tiny_model, tmp_path, recording):
    model = SpeechGPT.load(copied(tiny_model, tmp_path / "tiny", hearings=2, beams=2), device="cpu").warm_up()
    ((_, asked),) = heard(model.encoder, [model._waveform(recording)], 2)
    assert model.reply(recording).turn[1] == model.generator.turn(asked)
    assert model.transcribe(recording) == model.generator.transcribe(asked)


def test_transcriptions_may_be_heard_more_often_than_questions(tmp_path):
    model = SpeechGPT.load(
        copied(MINI, tmp_path / "mini", hearings=1, asr_hearings=3, asr_beams=1), device="cpu"
    )
    counts, generate = [], model.generator.generate_batch
    model.generator.generate_batch = lambda prompts, kind, size=16, hearings=1: (
        counts.append((kind, len(prompts), hearings)) or generate(prompts, kind, size, hearings)
    )
    turn = model.reply(MINI / "question.wav", speech=False)
    text = model.transcribe(MINI / "question.wav")
    assert counts == [("asr", 3, 3)] and text == turn.transcript
    assert not isinstance(turn.turn[0], Hearings)
    assert Decoding(hearings=2).hearings_for("asr") == Decoding(asr_hearings=2).hearings_for("asr") == 2
    assert Decoding(asr_hearings=2).hearings_for("speech-text") == 1
    # What a command asks for counts for both.
    both = find_model(str(tmp_path / "mini")).hearing(2).config.decoding
    assert Decoding.from_dict(both).hearings_for("asr") == 2 == Decoding.from_dict(both).hearings_for("tts")
    with pytest.raises(ValueError, match="asr_hearings 6; expected 0 to 5"):
        Decoding(asr_hearings=6)


def test_a_model_directory_of_too_many_hearings_is_refused(tiny_model, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "speechgpt.json").read_text())
    config["decoding"]["hearings"] = 6
    (folder / "speechgpt.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="hearings 6; expected 1 to 5"):
        SpeechGPT.load(folder, device="cpu")
