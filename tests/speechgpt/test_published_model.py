"""The profile `upstream` on a checkpoint of the published shape: 33,006 rows, markers in pieces."""

import json

import pytest
import torch

from speechgpt import cli
from speechgpt.data.published import PREFIX
from speechgpt.generate import Decoding, Generator
from speechgpt.model_dir import PUBLISHED_DECODING, find_model, load_generator
from speechgpt.vocabulary import Vocabulary

SHORT = {"max_text_tokens": 12, "max_units": 20, "max_new_tokens": 120}  # random weights never stop


@pytest.fixture(scope="module")
def generator(published) -> Generator:
    return load_generator(published / "SpeechGPT-7B-cm", PREFIX, SHORT, "cpu")


def test_ids_are_the_published_ones(published, golden_cases):
    """The golden ids of transformers 4.33.1, moved up to where LLaMA's 32,000 pieces end."""
    vocabulary = Vocabulary.load(published / "SpeechGPT-7B-cm")
    assert vocabulary.profile == "upstream" and vocabulary.size == 33_006 and vocabulary.pad_id == 0
    assert (vocabulary.unit_id(0), vocabulary.unit_id(999)) == (32_000, 32_999)
    singles = ("<sosp>", "<eosp>", "[Human]", "[SpeechGPT]", "<eoh>", "<eos>")
    assert [vocabulary.single(name) for name in singles] == list(range(33_000, 33_006))
    for name in ("<eoa>", "[ta]", "[ua]"):
        assert len(vocabulary.marker(name)) > 1 and max(vocabulary.marker(name)) < 32_000
    for case in golden_cases["cases"]:
        wanted = [i if i < 800 else i + 31_200 for i in case["ids"]]
        assert vocabulary.encode_template(case["text"]) == wanted, case["text"]


@pytest.mark.parametrize("question", ["what is the capital of france", [661, 987, 0, 999]])
@pytest.mark.parametrize("out", ["speech", "text"])
def test_a_turn_is_generated_and_its_ids_are_parsed(generator, question, out):
    seen: list[int] = []
    turn = generator.turn(question, out, on_token=seen.append)
    v = generator.vocabulary
    assert turn.complete and seen[-1] == v.eos_id
    assert bool(turn.transcript) == (not isinstance(question, str)) and turn.answer
    assert turn.units == [v.id_to_unit(i) for i in seen if v.is_unit(i)] and bool(turn.units) == (
        out == "speech"
    )
    spelled = "".join(v.piece_text(i) for i in seen if i < v.base_size and i != v.eos_id)
    assert spelled.endswith("<eoa>."), "a marker in several pieces, none of them its own row"


def test_ids_are_parsed_and_not_their_text(generator):
    """An answer that spells a unit in pieces says it; only a unit's own id is a unit."""
    v = generator.vocabulary
    spelled = v.pieces.encode("take <12> of")
    assert not any(v.is_unit(i) for i in spelled)
    ids = [*v.marker("[ta]"), *spelled, *v.pieces.encode(";"), *v.marker("[ua]")]
    ids += [v.single("<sosp>"), v.unit_id(7), v.single("<eosp>"), *v.marker("<eoa>"), v.eos_id]
    turn = generator.format.parse(ids)
    assert turn.units == [7] and "<12>" in turn.answer


def test_padding_is_id_0_on_the_left_and_changes_no_answer(generator):
    questions = ["hello", "what is the capital of france and of all the other countries"]
    prompts = [generator.format.prompt_turn(q) for q in questions]
    ids, mask = generator._padded(prompts)
    gap = len(prompts[1]) - len(prompts[0])
    assert (
        gap > 0
        and ids[0, :gap].tolist() == [0] * gap
        and mask[0].tolist() == [0] * gap + [1] * len(prompts[0])
    )
    assert ids[0, gap:].tolist() == prompts[0] and prompts[0][0] == 1
    assert generator.turn_batch(questions) == [generator.turn(question) for question in questions]


def test_prompts_are_the_start_of_the_published_rows(generator):
    v = generator.vocabulary
    row = f"{PREFIX}[Human]: <sosp><1><2><eosp><eoh>. [SpeechGPT]: Hi; [ta] Yes<eoa>."
    prompt = generator.format.prompt_turn([1, 2])
    assert [v.bos_id, *v.encode_template(row)][: len(prompt)] == prompt


def test_a_published_folder_is_a_model_of_its_own(published):
    found = find_model(published / "SpeechGPT-7B-com")
    assert found.config.profile == "upstream" and found.config.prefix == PREFIX
    Decoding.from_dict(PUBLISHED_DECODING)
    with pytest.raises(ValueError, match="without encoder and codebook; give --encoder PATH --codebook PATH"):
        found.load_encoder()
    with pytest.raises(ValueError, match="without vocoder; give --vocoder PATH"):
        found.load_synthesizer()


def run(capsys, *argv) -> tuple[int, str, str]:
    code = cli.main([str(a) for a in argv])
    found = capsys.readouterr()
    return code, found.out, found.err


def test_talk_takes_cm_with_com_and_com_alone(published, capsys, monkeypatch):
    from speechgpt import model_dir

    monkeypatch.setattr(model_dir, "PUBLISHED_DECODING", SHORT)
    asked = ["--text", "hello there", "--no-speech", "--json", "--device", "cpu"]
    cm, com = published / "SpeechGPT-7B-cm", published / "SpeechGPT-7B-com"
    code, both, _ = run(capsys, "talk", *asked, "--model", cm, "--lora", com)
    assert code == 0 and json.loads(both)["answer"]
    code, alone, _ = run(capsys, "talk", *asked, "--model", com)
    assert json.loads(alone)["answer"] == json.loads(both)["answer"]
    code, plain, _ = run(capsys, "talk", *asked, "--model", cm)
    assert json.loads(plain)["answer"] != json.loads(both)["answer"], "the adapter must matter"
    code, _, err = run(capsys, "talk", *asked[:2], "--model", cm)
    assert code == 2 and "give --vocoder PATH" in err and err.count("\n") == 1


def test_parts_from_elsewhere_must_have_the_models_units(published, tiny_parts, recording, tmp_path, capsys):
    given = ["--model", published / "SpeechGPT-7B-cm", "--device", "cpu"]
    listening = ["--encoder", tiny_parts["encoder"], "--codebook", tiny_parts["codebook"]]
    code, _, err = run(capsys, "transcribe", recording, *given, *listening)
    assert (
        code == 2 and "SpeechGPT-7B-cm has 1000 units" in err and "codebook.safetensors has 12 units" in err
    )
    wav = tmp_path / "x.wav"
    code, _, err = run(capsys, "speak", "hi", *given, "--out", wav, "--vocoder", tiny_parts["vocoder"])
    assert code == 2 and "vocoder has 12 units" in err and not wav.exists()


def test_parts_from_elsewhere_make_a_whole(tiny_parts, tiny_model, recording, tmp_path, capsys):
    """A language model folder of ours with the other parts answers as the assembled model does."""
    parts = [f for name in ("encoder", "codebook", "vocoder") for f in (f"--{name}", tiny_parts[name])]
    code, line, err = run(capsys, "transcribe", recording, "--model", tiny_parts["llm"], *parts[:4], "--json")
    assert code == 0, err
    assert json.loads(line)["text"]
    code, said, err = run(capsys, "encode", recording, "--model", tiny_model)
    code, again, err = run(capsys, "encode", recording, "--model", tiny_model, *parts[:4])
    assert code == 0 and said == again


def test_rows_that_lack_are_refused(published, tmp_path):
    import shutil

    folder = shutil.copytree(published / "SpeechGPT-7B-cm", tmp_path / "cm")
    added = json.loads((folder / "added_tokens.json").read_text())
    (folder / "added_tokens.json").write_text(json.dumps({k: v for k, v in added.items() if k != "<eos>"}))
    with pytest.raises(ValueError, match="<eos>"):
        load_generator(folder)


def test_the_embedding_row_of_a_unit_is_its_id(generator):
    table = generator.decoder.embedding
    assert table.shape == (33_006, 16) and generator.decoder.head.shape == (16, 33_006)
    assert not torch.equal(table[32_661], table[661])
