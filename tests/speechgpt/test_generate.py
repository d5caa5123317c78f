import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from speechgpt.data.dialogue_rows import ChainRow
from speechgpt.generate import PUBLISHED, Decoding, Generator
from speechgpt.grammar import TurnGrammar
from speechgpt.prompts import PromptFormat, Turn

LIMITS = {"max_new_tokens": 48, "max_units": 8, "max_text_tokens": 6}
GREEDY = Decoding(**LIMITS)
SAMPLED = Decoding(sample=True, temperature=0.8, top_k=60, top_p=0.8, seed=3, **LIMITS)


def random_model(vocabulary, positions: int = 256) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary.size + 3, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=positions, bos_token_id=vocabulary.bos_id,
        eos_token_id=vocabulary.eos_id, pad_token_id=vocabulary.pad_id, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def generator(vocabulary) -> Generator:
    return Generator(random_model(vocabulary), PromptFormat(vocabulary), GREEDY)


def with_decoding(generator: Generator, decoding: Decoding) -> Generator:
    return Generator(generator.model, generator.format, decoding)


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_turns_are_well_formed(generator, decoding):
    generator = with_decoding(generator, decoding)
    for question, out in (([1, 2, 3], "speech"), ([1, 2, 3], "text"), ("hi", "speech"), ("hi", "text")):
        turn = generator.turn(question, out)
        assert turn.complete and turn.answer.strip()
        assert bool(turn.transcript) == (question != "hi") and bool(turn.units) == (out == "speech")
        assert len(turn.units) <= 8
        timings = generator.timings
        assert 0 < timings.first_token <= timings.total and timings.new_tokens <= 48


def test_history_changes_the_prompt(generator):
    history = [("hi", Turn("", "there", [1, 2]))]
    generator.turn([3, 4], "text", history)
    with_history = generator.timings.prompt_tokens
    assert generator.timings.new_tokens > 1
    generator.turn([3, 4], "text")
    assert generator.timings.prompt_tokens < with_history


def test_batches_equal_single_calls(generator):
    questions = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [2, 1], [5]]
    assert generator.transcribe_batch(questions, batch_size=3) == [generator.transcribe(q) for q in questions]
    texts = ["hi", "what is the capital of france", "turn on"]
    assert generator.speak_batch(texts) == [generator.speak_units(t) for t in texts]
    mixed = [*questions, *texts]
    for out in ("speech", "text"):
        assert generator.turn_batch(mixed, out) == [generator.turn(q, out) for q in mixed]
    assert generator.transcribe_batch([]) == [] and generator.turn_batch([]) == []


def test_the_stream_is_the_turn_text_first(generator):
    tokens = []
    whole = generator.turn([1, 2, 3], "speech", on_token=tokens.append)
    parts = list(generator.stream_turn([1, 2, 3], "speech"))
    assert generator.format.parse(tokens) == whole
    assert "".join(p.text for p in parts if p.section == "transcript") == whole.transcript
    assert "".join(p.text for p in parts if p.section == "answer") == whole.answer
    assert [p.unit for p in parts if p.section == "units"] == whole.units
    order = [p.section for p in parts]
    assert order == sorted(order, key=["transcript", "answer", "units"].index)


@pytest.mark.parametrize("last", [" ", "\u00e9"], ids=["space", "half a character"])
def test_no_text_comes_after_the_first_unit(native, monkeypatch, last):
    generator = Generator(random_model(native), PromptFormat(native), GREEDY)
    *_, first_byte, last_byte = native.encode_text(last)
    ending = [last_byte] if last == " " else [first_byte]
    names = ("[ta]", "[ua]", "<sosp>", "<eosp>", "<eoa>")
    answers, speaks, sosp, eosp, ends = (native.single(name) for name in names)
    units = [native.base_size + u for u in (3, 4, 5)]
    forced = [*native.encode_text("hi"), answers, *native.encode_text("hello"), *ending]
    forced += [speaks, sosp, *units, eosp, ends]
    monkeypatch.setattr(generator, "steps", lambda *_: ([token] for token in forced))
    parts = list(generator.stream_turn([1, 2, 3], "speech"))
    whole = generator.format.parse(forced)
    assert whole.answer == "hello" + (" " if last == " " else "\ufffd")
    assert "".join(p.text for p in parts if p.section == "answer") == whole.answer
    assert [p.section for p in parts][-3:] == ["units"] * 3 and [p.unit for p in parts[-3:]] == whole.units


def test_seeds(generator):
    sampled = with_decoding(generator, SAMPLED)
    assert sampled.turn("hi") == sampled.turn("hi")
    other = with_decoding(generator, Decoding(**{**SAMPLED.to_dict(), "seed": 4}))
    assert sampled.turn("hi") != other.turn("hi")
    assert sampled.turn("hi") != generator.turn("hi")


@pytest.mark.parametrize("how", ["greedy", "sampling", "beams", "prompt lookup", "static cache"])
@pytest.mark.parametrize("kind", ["speech-speech", "speech-text"])
def test_transformers_generate_with_the_grammar(generator, how, kind):
    v = generator.vocabulary
    prompt = generator.format.prompt_turn([1, 2, 3, 1, 2, 3])
    settings = {
        "greedy": {}, "sampling": {"do_sample": True}, "beams": {"num_beams": 3},
        "prompt lookup": {"prompt_lookup_num_tokens": 3}, "static cache": {"cache_implementation": "static"},
    }[how]  # fmt: skip
    for limit in (25, 60):
        torch.manual_seed(1)
        found = generator.model.generate(
            torch.tensor([prompt]), max_new_tokens=limit, pad_token_id=v.pad_id, **settings,
            logits_processor=[TurnGrammar(v, kind, len(prompt), limit, max_units=8, max_text_tokens=6)],
        )[0, len(prompt) :].tolist()  # fmt: skip
        turn = generator.format.parse(found)
        assert turn.complete and turn.transcript.strip() and turn.answer.strip()
        assert bool(turn.units) == (kind == "speech-speech")
        assert found[-1] == v.eos_id or set(found[found.index(v.eos_id) :]) <= {v.eos_id, v.pad_id}
        if how in ("greedy", "prompt lookup", "static cache"):
            own = Generator(
                generator.model, generator.format, Decoding(**{**LIMITS, "max_new_tokens": limit})
            )
            assert own.generate_batch([prompt], kind) == [found]


def test_beam_search_in_a_batch(generator):
    slow = with_decoding(generator, Decoding(asr_beams=2, **LIMITS))
    units = [[1, 2, 3], [4, 5]]
    both = with_decoding(generator, Decoding(beams=2, **LIMITS)).transcribe_batch(units)
    assert slow.transcribe_batch(units) == both
    assert slow.turn("hi") == with_decoding(generator, Decoding(**LIMITS)).turn("hi")
    beams = with_decoding(generator, Decoding(beams=2, **LIMITS))
    questions = [[1, 2, 3], [4, 5, 6, 7], "hi"]
    assert beams.turn_batch(questions[:2]) == [beams.turn_batch([q])[0] for q in questions[:2]]
    turn = beams.turn("hi")
    assert turn.complete and turn.units and turn == beams.turn_batch(["hi"])[0]


def test_positions_bound_the_turn(vocabulary):
    generator = Generator(random_model(vocabulary, positions=80), PromptFormat(vocabulary), Decoding())
    turn = generator.turn([1, 2, 3])
    assert turn.complete and turn.units
    assert generator.timings.prompt_tokens + generator.timings.new_tokens <= 80
    with pytest.raises(ValueError, match="at most .* fit"):
        generator.turn(list(range(1, 19)) * 5)
    with pytest.raises(ValueError, match="the model holds 80"):
        generator.transcribe(list(range(1, 19)) * 5)
    tight = Generator(generator.model, generator.format, Decoding(max_new_tokens=4))
    with pytest.raises(ValueError, match="at most 4 of them new"):
        tight.turn([1, 2])


def test_a_learnt_answer_comes_back(vocabulary):
    """Rows, prompts, grammar and parsing agree: a model that learnt one row says it."""
    prompts = PromptFormat(vocabulary)
    row = ChainRow("x", "speech-speech", "turn on (it)", "it is on; yes", [5, 6, 7], [8, 9, 8, 1, 2])
    rendered = prompts.render(row)
    model = random_model(vocabulary).train()
    ids = torch.tensor([rendered.ids])
    labels = ids.masked_fill(~torch.tensor([rendered.mask]), -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    generator = Generator(model, prompts)
    assert generator.turn(row.question_units) == Turn(row.question, row.answer, row.answer_units)
    assert generator.timings.new_tokens == sum(rendered.mask)


def test_settings_are_checked(generator, vocabulary):
    assert PUBLISHED.max_new_tokens == 2048 and Decoding.from_dict(PUBLISHED.to_dict()) == PUBLISHED
    with pytest.raises(ValueError, match="unknown top; known: sample"):
        Decoding.from_dict({"top": 1})
    with pytest.raises(ValueError, match="temperature 0"):
        Decoding(temperature=0)
    with pytest.raises(ValueError, match="output 'song'"):
        generator.turn("hi", "song")
    with pytest.raises(ValueError, match="question is empty"):
        generator.turn([])
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    small = LlamaForCausalLM(LlamaConfig(vocab_size=9, **sizes))
    with pytest.raises(ValueError, match="9 token rows"):
        Generator(small, PromptFormat(vocabulary))


def test_default_descriptions_are_trained_ones():
    from importlib.resources import files

    from speechgpt.generate import ASR_DESCRIPTION, TTS_DESCRIPTION

    for name, description in (("asr", ASR_DESCRIPTION), ("tts", TTS_DESCRIPTION)):
        lines = (files("speechgpt.data") / "tasks" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        assert description in lines
