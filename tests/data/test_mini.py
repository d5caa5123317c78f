import json
import random
import re
from collections import Counter, defaultdict
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from speechgpt.data import coffee
from speechgpt.data.chain import main as chain
from speechgpt.data.dialogue_rows import read_chain
from speechgpt.data.english import Inflector, article
from speechgpt.data.families import family_wordings
from speechgpt.data.files import read_jsonl, write_jsonl
from speechgpt.data.mini import Casting, MiniConfig, main, prose, single_digits
from speechgpt.data.prose import HeldOut, choose_pieces, prose_pieces, read_prose
from speechgpt.data.questions import UNKNOWN_ANSWER, all_sums, orders, smalltalk, unknown
from speechgpt.data.rare_words import prose_words
from speechgpt.data.rows import UnitRow, Utterance, write_manifest, write_units
from speechgpt.data.sentences import TEXT, SentenceMaker
from speechgpt.data.settings import load_settings
from speechgpt.data.smalltalk_files import (
    MAX_ANSWER_WORDS,
    read_more_wordings,
    read_smalltalk,
    wording_splits,
)
from speechgpt.data.synthesize import read_sentences
from speechgpt.data.text_normal import ONES, digit_words, normalise, number_words, ordinal_words

PRESETS = Path(__file__).parents[2] / "speechgpt" / "presets"
LATTE = "coffeeDrink=latte; size=small"
SMALL = {
    **{"sentences": 300, "word_lists": 20, "words": 20, "digit_strings": 20, "numbers": 20, "orders": 200},
    **{
        "held_out_sentences": 20,
        "held_out_orders": 20,
        "digits": 60,
        "single_digits": 30,
        "sums": 80,
        "sums_read": 7,
        "repeats": 50,
    },
    **{"smalltalk": 12_500, "unknown": 60, "unknown_sentences": 20, "held_out_questions": 5},
    **{"prose": 0, "held_out_prose": 2, "prose_text": 0, "recorded_texts": 0},
    **{"prose_again": 0, "rare_word_sayings": 0, "smalltalk_family": 0, "unknown_made": 0},
}


def written_by_hand(text):
    """The slots of an answer, by other code than the package's: what the answer must hold, in any wording."""
    text = " " + re.sub(r"\s+", " ", re.sub(r"[^a-z ]", " ", text.lower())) + " "
    amount = "(?:a little bit of |a bit of |some |a lot of |lots of |)"
    drinks = "iced mocha|(?:drip|house|iced) coffee|americano|cappuccino|espresso|latte|mocha|coffee"
    slots = {}
    for name, pattern in {
        "roast": "(?:light|medium|dark) roast",
        "numberOfShots": "(?:single|double|triple) shot",
        "milkAmount": amount + "(?:skim milk|whole milk|soy milk|almond milk|milk|cream)",
        "sugarAmount": amount + "(?:brown sugar|sugar|sweetener)",
        "size": "small|medium|large|(?:eight|twelve|sixteen|twenty) ounce",
        "coffeeDrink": drinks,
    }.items():
        if match := re.search(f" ({pattern}) ", text):
            slots[name] = match[1]
            text = text[: match.start()] + " | " + text[match.end() :]
    return slots


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    preset = yaml.safe_load((PRESETS / "mini" / "corpus.yaml").read_text())
    path = tmp_path_factory.mktemp("config") / "corpus.yaml"
    path.write_text(yaml.safe_dump(preset | SMALL))
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory, config_file):
    out = tmp_path_factory.mktemp("texts")
    assert main(["--config", str(config_file), "--out", str(out)]) == 0
    return out


def known_wordings():
    rows = read_smalltalk()
    more = read_more_wordings(rows).values()
    return {text for texts in (*more, *(row["questions"] for row in rows)) for text in texts}


def rows_of(path):
    return [row for _, row in read_jsonl(path)]


def test_counts_and_fields(texts):
    assert len(rows_of(texts / "sentences.jsonl")) == 410
    questions = rows_of(texts / "qa.jsonl")
    kinds = Counter(row["id"].partition(".")[0] for row in questions)
    assert kinds == {
        "order": 200,
        "digit": 60,
        "sum": 80,
        "read": 7,
        "repeat": 50,
        "talk": 12_500,
        "unknown": 80,
    }
    assert set(questions[0]) == {"id", "question", "answer", "answer_id", "split"}


def test_both_sides_of_every_question_are_spoken_once(texts):
    asked = {s.id: s for s in read_sentences(texts / "questions.jsonl")}
    answered = {s.id: s for s in read_sentences(texts / "answers.jsonl")}
    for row in rows_of(texts / "qa.jsonl"):
        if row["id"].startswith("read."):  # by nobody
            assert f"{row['id']}.q" not in asked and row["split"] == "train"
            continue
        assert asked[f"{row['id']}.q"].text == row["question"]
        assert asked[f"{row['id']}.q"].split == row["split"]
        assert answered[f"{row['answer_id']}.a"].text == row["answer"]
    assert len({s.text for s in answered.values()}) == len(answered)


RECORDED = [
    Utterance("order-1", "a.wav", 2.0, text="CAN I GET a small latte", split="test", slots=LATTE),
    Utterance("order-2", "b.wav", 2.0, slots=LATTE),  # nobody knows its words
    Utterance("order-3", "c.wav", 2.0, text="i want a mocha", slots="coffeeDrink=mocha"),
    Utterance("other-4", "d.wav", 2.0, text="turn the light on", slots="state=on"),
    Utterance("7_ann_1", "e.wav", 0.5, corpus="digits", text="Seven.", split="dev"),
    Utterance("8_ann_1", "f.wav", 0.5, corpus="digits", text="8"),  # chain would not take it for "eight"
    Utterance("book-1", "g.wav", 2.0, corpus="librispeech", text="seven"),
]


def test_recordings_of_orders_and_digits_become_questions(texts, config_file, tmp_path, capsys):
    write_manifest(tmp_path / "speech.jsonl", RECORDED)
    out = tmp_path / "out"
    speech = ["--speech", str(tmp_path / "speech.jsonl")]
    assert main(["--config", str(config_file), "--out", str(out), *speech]) == 0
    assert "3 of 7 recordings ask something, 2 say something" in capsys.readouterr().out
    rows = {row["id"]: row for row in rows_of(out / "qa.jsonl")}
    asked = [row for row in rows.values() if "question_id" in row]
    assert [(r["id"], r["question_id"], r["question"], r["answer"], r["split"]) for r in asked] == [
        (*["order-1"] * 2, "can i get a small latte", "okay here is your order a small latte", "test"),
        (*["order-3"] * 2, "i want a mocha", "okay here is your order a mocha", "train"),
        (*["7_ann_1"] * 2, "seven", "you said seven", "dev"),
    ]
    assert len(rows) == len(rows_of(texts / "qa.jsonl")) + 3
    spoken = {s.id for s in read_sentences(out / "questions.jsonl")}
    assert spoken == {
        f"{i}.q" for i, row in rows.items() if "question_id" not in row and not i.startswith("read.")
    }
    answered = {s.id: s.text for s in read_sentences(out / "answers.jsonl")}
    assert all(answered[f"{row['answer_id']}.a"] == row["answer"] for row in asked)
    said_seven = {row["answer_id"] for row in rows.values() if row["answer"] == "you said seven"}
    assert len(said_seven) == 1

    units = [UnitRow(u.id, [1, 2], [1, 1], text=u.text, split=u.split) for u in RECORDED]
    units += [UnitRow(i, [3, 4], [1, 1], text=text) for i, text in answered.items()]
    write_units(tmp_path / "units.jsonl", units)
    write_jsonl(tmp_path / "asked.jsonl", asked)
    files = ["--units", str(tmp_path / "units.jsonl"), "--out", str(tmp_path / "chain.jsonl")]
    assert chain(["--qa", str(tmp_path / "asked.jsonl"), *files, "--proportions", "speech-speech=1"]) == 0
    assert [
        (r.id, r.question_units, r.answer_units, r.split) for r in read_chain(tmp_path / "chain.jsonl")
    ] == [
        ("order-1.speech-speech", [1, 2], [3, 4], "test"),
        ("order-3.speech-speech", [1, 2], [3, 4], "train"),
        ("7_ann_1.speech-speech", [1, 2], [3, 4], "dev"),
    ]


def test_no_order_to_be_spoken_has_the_words_of_a_recorded_one_in_another_split():
    plain = list(orders(300, 30, 1))
    taken = [replace(row, split="test") for row in plain[100:110]]
    again = list(orders(300, 30, 1, taken))
    words = {row.question for row in taken}
    assert {row.split for row in plain if row.question in words} == {"train"}
    assert {row.split for row in again if row.question in words} <= {"test"}
    assert list(orders(300, 30, 1, plain[60:])) != [] and again[:60] == plain[:60]


def test_a_manifest_that_asks_nothing_is_refused(config_file, tmp_path):
    write_manifest(tmp_path / "speech.jsonl", RECORDED[1:2])
    command = ["--config", str(config_file), "--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="speech.jsonl: none of 1 recordings .*speechgpt align --jsgf-slots"):
        main([*command, "--speech", str(tmp_path / "speech.jsonl")])
    assert not (tmp_path / "out").exists()


def test_what_people_say_is_spoken_again_but_not_what_is_held_back(config_file, tmp_path):
    """A manifest that asks nothing is welcome."""
    said = ["The door was OPEN.", "they went home", "he saw that they went home at once", "they went home"]
    splits = ["train", "train", "test", "train"]
    rows = [Utterance(f"s{i}", "a.wav", 2.0, text=said[i], split=splits[i]) for i in range(4)]
    rows.append(Utterance("s4", "a.wav", 2.0, text="saw that they went home at"))  # within a test text
    write_manifest(tmp_path / "speech.jsonl", rows)
    settings = yaml.safe_load(config_file.read_text())
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(settings | {"recorded_texts": 5}))
    command = ["--config", str(tmp_path / "corpus.yaml"), "--out", str(tmp_path / "out")]
    assert main([*command, "--speech", str(tmp_path / "speech.jsonl")]) == 0
    again = [row for row in rows_of(tmp_path / "out/sentences.jsonl") if row["id"].startswith("said.")]
    assert len(again) == 5
    assert {row["text"] for row in again} == {"the door was open", "they went home"}
    with pytest.raises(ValueError, match="recorded_texts is 5, but --speech .*make: SPEECH="):
        main(command)


BOOK = """The Whale
*** START OF THE PROJECT GUTENBERG EBOOK ***

CHAPTER I. LOOMINGS

"Call me _Ishmael_," said Mr. Hunt. The sea was
calm, and the men who had worked since the early morning were glad to rest.

The king of Prussia saw it in 1851. The café was shut. Dr. J. Hill saw the old sea. He saw the sea at last!
He heard that they went home.

*** END OF THE PROJECT GUTENBERG EBOOK ***
This licence is read by nobody.
"""
GLOSS = """00001740 29 v 01 breathe 0 001 ~ 00005041 v 0000 | draw air; "the old sea was calm"; "No. of men"
00002325 29 v 01 sit 0 001 ~ 00005041 v 0000 | "sit"; "the men were glad"- a man
"""


def test_prose_is_cut_into_plain_pieces(config_file, tmp_path):
    folder = tmp_path / "books" / "whale"
    folder.mkdir(parents=True)
    (folder / "whale.txt").write_text(BOOK)
    (folder / "data.verb").write_text(GLOSS)
    (folder / "index.verb").write_text("not read")
    (pieces,) = prose_pieces(read_prose([tmp_path / "books"]), 1).values()
    assert set(pieces) == {
        *("call me ishmael said mr hunt", "he saw the sea at last", "he heard that they went home"),
        *("the sea was calm", "the men who had worked since the early morning were glad to rest"),
        *("the old sea was calm", "the men were glad"),
    }
    write_manifest(
        tmp_path / "speech.jsonl",
        [
            Utterance("a", "a.wav", 2.0, text="the men were glad", split="test"),
            Utterance("b", "b.wav", 2.0, text="and he heard that they went home", split="dev"),
        ],
    )
    settings = yaml.safe_load(config_file.read_text()) | {"prose_word_times": 1}
    path = tmp_path / "corpus.yaml"
    path.write_text(yaml.safe_dump(settings | {"prose": 3, "held_out_prose": 1, "prose_text": 2}))
    command = ["--config", str(path), "--out", str(tmp_path / "out")]
    command += ["--speech", str(tmp_path / "speech.jsonl")]
    with pytest.raises(ValueError, match="no --prose .make: PROSE=.; give .txt files"):
        main(command)
    assert main([*command, "--prose", str(tmp_path / "books")]) == 0
    spoken = [row for row in rows_of(tmp_path / "out/sentences.jsonl") if row["id"].startswith("prose.")]
    assert [row.get("split", "train") for row in spoken] == ["test", "dev", "train"]
    text = rows_of(tmp_path / "out/text.jsonl")
    assert [row["id"] for row in text] == ["text.000000", "text.000001"]
    used = {row["text"] for row in [*spoken, *text]}
    assert len(used) == 5 and not used & {"the men were glad", "he heard that they went home"}
    path.write_text(yaml.safe_dump(settings | {"prose": 3, "prose_text": 4}))
    with pytest.raises(ValueError, match="5 pieces of 7 can be used, prose and prose_text ask for 7"):
        main([*command, "--prose", str(tmp_path / "books")])
    with pytest.raises(FileNotFoundError, match="holds no prose; expected .txt files or WordNet's"):
        main([*command, "--prose", str(tmp_path / "out")])


def test_held_out_prose_is_nowhere_in_train_and_train_stays_as_it_is(config_file, tmp_path):
    things = ("door", "sea", "lamp", "boat", "hill", "road", "bird", "horse")
    book = [f"He saw the old {thing}.\n\nThen he saw the old {thing} again." for thing in things]
    (tmp_path / "book.txt").write_text("\n\n".join([*book, "Whose lamp is this?", "We saw it."]) + "\n")
    settings = yaml.safe_load(config_file.read_text()) | {"prose_word_times": 1, "prose": 16}
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(settings | {"held_out_prose": 5, "prose_text": 2}))
    config = load_settings(MiniConfig, tmp_path / "corpus.yaml")
    files = read_prose([tmp_path])
    pieces = prose_pieces(files, config.seed)
    chosen = choose_pieces(pieces, 18, [], 1, HeldOut([]), config.seed)
    spoken, read = prose(config, files, [], HeldOut([]))
    assert read == chosen[16:]
    numbers = [int(identity[6:11]) for identity, _, _ in spoken]
    assert [text for _, text, _ in spoken] == [chosen[number] for number in numbers]
    assert numbers[-6:] == [10, 11, 12, 13, 14, 15]  # of train nothing is missing
    train = HeldOut([text for _, text, split in spoken if split == "train"] + read)
    held = [text for _, text, split in spoken if split != "train"]
    assert 0 < len(held) < 10 and not any(map(train.says, held))

    again, _ = prose(config, files, [], HeldOut([]), [held[0], chosen[12]])
    assert again == [row for row in spoken if row[1] != held[0]]


def test_no_held_out_piece_is_an_answer_or_said_by_people(config_file, tmp_path):
    said = ["we saw it", "they are all here", "the word number one"]
    (tmp_path / "book.txt").write_text("We saw it.\n\nThey are all here.\n\nThe word number one.\n\nIt is.")
    rows = [Utterance("s", "a.wav", 2.0, text=said[0]), Utterance("t", "b.wav", 2.0, text="not here at all")]
    write_manifest(tmp_path / "speech.jsonl", rows)
    settings = yaml.safe_load(config_file.read_text()) | {"prose_word_times": 1, "prose": 3}
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(settings | {"held_out_prose": 2}))
    given = ["--speech", tmp_path / "speech.jsonl", "--prose", tmp_path / "book.txt"]
    command = ["--config", tmp_path / "corpus.yaml", "--out", tmp_path / "out", *given]
    assert main(list(map(str, command))) == 0
    spoken = {row["text"] for row in rows_of(tmp_path / "out/sentences.jsonl") if row["id"][:5] == "prose"}
    assert spoken == set(said[1:])


def test_some_prose_is_said_by_a_second_voice_and_rare_words_in_lists(config_file, tmp_path):
    (tmp_path / "data.verb").write_text(GLOSS.replace("| ", "| a luxuriant canyon, J. R. luxuriants; "))
    (tmp_path / "book.txt").write_text("The sea was calm.\n\nA canyon lay there.\n\nThey met him.\n")
    words = prose_words(read_prose([tmp_path]))
    assert words["luxuriant"] == 2 and "j" not in words
    settings = yaml.safe_load(config_file.read_text()) | {"prose_word_times": 1, "held_out_prose": 1}
    settings |= {"prose": 5, "prose_again": 1, "rare_word_sayings": 5, "rare_word_times": 1}
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(settings))
    command = ["--config", tmp_path / "corpus.yaml", "--out", tmp_path / "out", "--prose", tmp_path]
    assert main(list(map(str, command))) == 0
    rows = rows_of(tmp_path / "out/sentences.jsonl")
    trained = [row for row in rows if row.get("split", "train") == "train"]
    twice = Counter(row["text"] for row in trained if row["id"].startswith("prose."))
    assert sorted(twice.values()) == [1, 1, 2]
    lists = [row["text"] for row in trained if row["id"].startswith("rare.")]
    assert Counter(word for text in lists for word in text.split())["luxuriant"] == 5
    trained += rows_of(tmp_path / "out/questions.jsonl")
    said = Counter(word for row in trained for word in row["text"].split())
    assert all(said[word] >= 5 for word in words)
    assert max(len(text.split()) for text in lists) <= 6
    settings |= {"prose": 0, "prose_again": 0}
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match="rare_word_sayings is 5, but there is no --prose"):
        main(list(map(str, command[:4])))


PIECES_ALONE = {"prose": 1, "held_out_prose": 0, "prose_word_times": 1}
WORDS_ALONE = {"rare_word_sayings": 5, "rare_word_times": 1}


@pytest.mark.parametrize("asked", [PIECES_ALONE, WORDS_ALONE, PIECES_ALONE | WORDS_ALONE])
def test_prose_that_is_not_utf8_is_refused_in_one_line_and_the_rest_is_read_once(
    asked, config_file, tmp_path, monkeypatch
):
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(yaml.safe_load(config_file.read_text()) | asked))
    book = tmp_path / "book.txt"
    command = ["--config", tmp_path / "corpus.yaml", "--out", tmp_path / "out", "--prose", book]
    book.write_bytes("The café was shut.\n".encode("latin1"))
    with pytest.raises(ValueError, match="not UTF-8") as refused:
        main(list(map(str, command)))
    assert str(refused.value) == (
        f"{book}: not UTF-8 ('utf-8' codec can't decode byte 0xe9 in position 7: invalid continuation byte); "
        "`iconv -f latin1 -t utf-8` converts it"
    )
    book.write_text("The sea was calm.\n")
    reads, read_text = [], Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **how: reads.append(path) or read_text(path, **how))
    assert main(list(map(str, command))) == 0
    assert reads.count(book) == 1
    ids = {row["id"].partition(".")[0] for row in rows_of(tmp_path / "out/sentences.jsonl")}
    assert ("prose" in ids, "rare" in ids) == ("prose" in asked, "rare_word_sayings" in asked)


def test_prose_that_nothing_asks_for_is_not_looked_for(config_file, tmp_path):
    command = ["--config", config_file, "--out", tmp_path / "out", "--prose", tmp_path / "nowhere"]
    assert main(list(map(str, command))) == 0


def test_prose_comes_from_each_folder_in_turn_and_unknown_words_are_left_out():
    whale = ["the sea was calm", "the zyx was calm", "the vitamin b was there", "the sea was calm"]
    pieces = {Path("whale"): whale, Path("a"): ["the sea", "was the calm sea", "calm was the sea"]}
    chosen = choose_pieces(pieces, 4, ["calm", "sea"], 2, HeldOut([]), 1)
    assert chosen[0] == "the sea was calm" and set(chosen[1:]) == set(pieces[Path("a")])
    with pytest.raises(ValueError, match="4 pieces of 7 can be used"):
        choose_pieces(pieces, 5, ["calm", "sea"], 2, HeldOut([]), 1)


def test_everything_is_plain_words_and_answers_are_short(texts):
    for name in ("sentences", "questions", "answers"):
        for row in rows_of(texts / f"{name}.jsonl"):
            assert normalise(row["text"]) == row["text"]
    for row in rows_of(texts / "qa.jsonl"):
        words = len(row["answer"].split())
        assert words <= (28 if row["id"].startswith("order") else MAX_ANSWER_WORDS)


def test_no_voice_and_no_held_out_text_is_in_two_splits(texts):
    voices, sentence_splits, question_splits = defaultdict(set), defaultdict(set), defaultdict(set)
    for row in rows_of(texts / "sentences.jsonl"):
        split = row["split"]
        voices[row["voice"]].add(split)
        if row["id"].startswith("sentence"):
            sentence_splits[row["text"]].add(split)
    for row in rows_of(texts / "questions.jsonl"):
        voices[row["voice"]].add(row["split"])
        if not row["id"].startswith("digit"):  # there are only ten digits
            question_splits[row["text"]].add(row["split"])
    for found in (voices, sentence_splits, question_splits):
        assert {name for name, splits in found.items() if len(splits) > 1} == set()


def test_same_seed_same_texts_other_seed_others(texts, config_file, tmp_path):
    main(["--config", str(config_file), "--out", str(tmp_path / "again")])
    for name in ("sentences", "questions", "answers", "qa"):
        again = (tmp_path / "again" / f"{name}.jsonl").read_bytes()
        assert again == (texts / f"{name}.jsonl").read_bytes()
    other = yaml.safe_load(config_file.read_text()) | {"seed": 5}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    main(["--config", str(tmp_path / "other.yaml"), "--out", str(tmp_path / "other")])
    assert (tmp_path / "other/qa.jsonl").read_bytes() != (texts / "qa.jsonl").read_bytes()


def test_every_answer_to_an_order_holds_its_slots_exactly(texts):
    asked = [row for row in rows_of(texts / "qa.jsonl") if row["id"].startswith("order")]
    for row in asked:
        slots = written_by_hand(row["question"])
        assert slots and written_by_hand(row["answer"]) == slots
        assert coffee.parse(row["answer"]) == slots == coffee.parse(row["question"])
        assert coffee.parse_slots(coffee.format_slots(slots)) == slots


def test_coffee_wordings_say_what_the_slots_say():
    rng = random.Random(3)
    for _ in range(2000):
        slots = coffee.draw_slots(rng)
        said = list(coffee.wordings(slots))
        assert len(set(said)) == len(said)
        assert all(coffee.parse(text) == slots == written_by_hand(text) for text in said)
    assert coffee.parse("what is the capital of france") == {}
    full = coffee.parse_slots(
        "coffeeDrink=latte; milkAmount=some milk; numberOfShots=double shot; roast=dark roast; size=large; "
        "sugarAmount=brown sugar"
    )
    answer = "okay here is your order a large dark roast double shot latte with some milk and brown sugar"
    assert coffee.answer(full) == answer
    assert len(list(coffee.wordings(full))) == 12
    assert "| a large dark roast double shot latte with brown sugar and some milk |" in coffee.jsgf(full)
    assert coffee.is_wording("brew a dark roast large double shot latte with some milk and brown sugar", full)
    assert not coffee.is_wording("brew a dark roast large double shot latte with some milk and", full)
    with pytest.raises(ValueError, match="size='big' is not in the coffee grammar"):
        coffee.parse_slots("size=big; coffeeDrink=latte")


def test_sums_are_right():
    values = {number_words(n): n for n in range(21)}
    for words, result in all_sums():
        if " plus " in words:
            a, b = words.split(" plus ")
            assert values[a] + values[b] == values[result]
        else:
            a, b = words.split(" minus ")
            assert values[a] - values[b] == values[result]
    assert len(all_sums()) == 462


def test_smalltalk_has_enough_questions_and_each_keeps_wordings_in_train():
    rows = read_smalltalk()
    assert len({row["answer"] for row in rows}) >= 220
    for row in rows:
        assert 12 <= len(row["questions"]) <= 14
        splits = wording_splits(row, 1)
        assert splits.count("train") >= 2 and splits.count("test") == 1


def test_broken_smalltalk_names_its_line(tmp_path):
    path = tmp_path / "talk.jsonl"
    good = {"id": "a", "answer": "yes", "questions": ["a", "b", "c"]}
    for bad, message in (
        ({"questions": ["a"]}, "at least 3 questions"),
        ({"answer": "Yes!"}, "expected 'yes'"),
        ({}, "is also a question of a"),
    ):
        path.write_text(json.dumps(good) + "\n" + json.dumps(good | bad) + "\n")
        with pytest.raises(ValueError, match=f"talk.jsonl:2: .*{message}"):
            read_smalltalk(path)


def test_more_wordings_are_all_of_train_and_leave_what_is_held_out_as_it_is():
    rows = read_smalltalk()
    more = read_more_wordings(rows)
    assert set(more) == {row["id"] for row in rows} and all(more.values())
    held = {text for row in rows for text, split in zip(row["questions"], wording_splits(row, 1), strict=True)
            if split != "train"}  # fmt: skip
    asked = list(smalltalk(12_500, 1))
    assert {q.question for q in asked if q.split != "train"} == held
    trained = {q.question for q in asked if q.split == "train"}
    assert not held & trained
    assert {text for texts in more.values() for text in texts} <= trained
    # Questions that stand alone have no family to lend them wordings.
    alone = [row["id"] for row in rows if "-" not in row["id"]]
    assert min(len(more[name]) for name in alone) >= 14


def test_no_wording_has_two_answers_and_none_is_long():
    told = {}
    for question in smalltalk(20_000, 1, families=30):
        assert told.setdefault(question.question, question.answer) == question.answer
        assert len(question.question.split()) <= 15
    ids = {question.id for question in smalltalk(20_000, 1, families=30)}
    assert len(ids) == 20_000


def test_broken_more_wordings_name_their_line(tmp_path):
    path = tmp_path / "more.jsonl"
    rows = [{"id": "a", "questions": ["one", "held back"]}, {"id": "b", "questions": ["two"]}]
    good = {"id": "a", "questions": ["three"]}
    for bad, message in (
        ({"id": "c", "questions": ["four"]}, "expected questions and the id of a row"),
        ({"id": "b", "answer": "no", "questions": ["four"]}, "expected questions and the id of a row"),
        ({"id": "b", "questions": ["Four?"]}, "expected 'four'"),
        ({"id": "b", "questions": ["one"]}, "'one' is also a question of a"),
        ({"id": "a", "questions": ["held back"]}, "'held back' is also a question of a"),
        ({"id": "b", "questions": ["three"]}, "'three' is also a question of a"),
    ):
        path.write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
        with pytest.raises(ValueError, match=f"more.jsonl:2: .*{message}"):
            read_more_wordings(rows, path)
    path.write_text(json.dumps(good) + "\n")
    assert read_more_wordings(rows, path) == {"a": ["three"], "b": []}


def test_unknown_questions_are_answered_politely(texts):
    rows = [row for row in rows_of(texts / "qa.jsonl") if row["id"].startswith("unknown")]
    assert {row["answer"] for row in rows} == {UNKNOWN_ANSWER}
    assert len({row["question"] for row in rows if "unknown.s" not in row["id"]}) == 60
    known = known_wordings()
    assert not known & {row["question"] for row in rows}


def test_sentences_are_varied_and_their_words_are_many():
    maker = SentenceMaker()
    assert len(maker.vocabulary) >= 2000
    rng = random.Random(0)
    drawn = [maker.sentence(rng) for _ in range(3000)]
    assert len(set(drawn)) > 2500
    assert all(normalise(text) == text for text in drawn)
    assert not [text for text in drawn if re.search(r"\ba [aio]|\ban [bcdfgjklmnpqrstvwxz]", text)]


def test_a_broken_template_names_its_line(tmp_path):
    for name in ("words.txt", "irregular.txt"):
        (tmp_path / name).write_bytes((TEXT / name).read_bytes())
    for bad, message in (("the {animol} ran", "unknown category 'animol'"), ("the {animal ran", "expected")):
        (tmp_path / "templates.txt").write_text(f"# comment\n{bad}\n")
        with pytest.raises(ValueError, match=f"templates.txt:2: .*{message}"):
            SentenceMaker(tmp_path)


@pytest.mark.parametrize(
    ("word", "form", "expected"),
    [
        *(("city", "+s", "cities"), ("box", "+s", "boxes"), ("hot dog", "+s", "hot dogs")),
        *(("knife", "+s", "knives"), ("radio", "+s", "radios"), ("toy", "+s", "toys")),
        *(("stop", ".past", "stopped"), ("carry", ".past", "carried"), ("visit", ".ing", "visiting")),
        *(("tie", ".ing", "tying"), ("eat", ".done", "eaten"), ("take", ".past", "took")),
        *(("forget", ".ing", "forgetting"), ("open", ".ing", "opening"), ("watch", ".s", "watches")),
        *(("cook", ".past", "cooked"), ("fix", ".ing", "fixing"), ("dance", ".ing", "dancing")),
    ],
)
def test_inflections(word, form, expected):
    assert Inflector.load(TEXT / "irregular.txt").inflect(word, form) == expected


def test_articles():
    found = [article(word) for word in ("apple", "university", "hour", "hat", "umbrella", "one")]
    assert found == ["an", "a", "an", "a", "an", "a"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 3:30, Dr. Who’s ‘fine’!", "it's three thirty dr who's fine"),
        ("$5 or 1,234.5 %", "five dollars or one thousand two hundred thirty four point five percent"),
        ("007 on the 21st", "zero zero seven on the twenty first"),
        ("£1 & naïve dogs'", "one pound and naive dogs"),
        ("at 7:05 or 8:00", "at seven oh five or eight o'clock"),
        ("", ""),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected
    assert normalise(expected) == expected


def test_numbers():
    assert number_words(1_000_015) == "one million fifteen"
    assert ordinal_words(20) == "twentieth" and ordinal_words(12) == "twelfth"
    assert digit_words("407") == "four zero seven"


def test_bad_configs_are_named(tmp_path, config_file):
    good = yaml.safe_load(config_file.read_text())
    path = tmp_path / "corpus.yaml"
    for change, message in (
        ({"voices_test": {"nobody": 1.0}}, "corpus.yaml: unknown voice 'nobody'"),
        ({"voices_test": {"rms": 1.0}}, "voices rms are in train and in test"),
        ({"orderz": 1}, "unknown setting orderz"),
        ({"smalltalk": 5}, "smalltalk: 5 asked for"),
    ):
        path.write_text(yaml.safe_dump(good | change))
        with pytest.raises(ValueError, match=message):
            main(["--config", str(path), "--out", str(tmp_path / "out")])


def test_the_preset_loads_and_speaks_about_three_hundred_thousand():
    config = load_settings(MiniConfig, PRESETS / "mini" / "corpus.yaml")
    numbers = asdict(config)
    kinds = ("sentences", "word_lists", "words", "digit_strings", "numbers", "orders", "digits", "sums")
    kinds += ("repeats", "smalltalk", "unknown", "unknown_sentences", "recorded_texts", "unknown_made")
    held = 2 * config.held_out_prose
    assert config.prose_again <= config.prose - held
    # and some 17,000 answers and 20,000 lists of rare words
    assert 300_000 < sum(numbers[kind] for kind in kinds) + config.prose + config.prose_again < 350_000
    ours = prose_pieces(read_prose([PRESETS.parents[1] / "data" / "text" / "prose"]), config.seed)
    # all of ours, of WordNet 3.0 (42,037) and of six novels (66,012)
    assert 106_000 < config.prose - sum(map(len, ours.values())) < 108_050


def test_each_training_voice_in_turn_says_the_digits():
    config = load_settings(MiniConfig, PRESETS / "mini" / "corpus.yaml")
    voices = Casting(config).pools["train"]
    assert config.single_digits == 10 * len(voices)
    rows = list(single_digits(config, Casting(config)))
    assert {(row.voice, row.text) for row in rows} == {(v, d) for v in voices for d in ONES[:10]}
    assert {(row.split, row.corpus) for row in rows} == {("train", "mini-digits")}
    assert len({row.id for row in rows}) == len(rows)


def test_wordings_of_a_family_are_taken_over_and_held_out_ones_never():
    rows = read_smalltalk()
    splits = {row["id"]: wording_splits(row, 1) for row in rows}
    pairs = [pair for row in rows for pair in zip(row["questions"], splits[row["id"]], strict=True)]
    held = {text for text, split in pairs if split != "train"}
    few = list(smalltalk(12_500, 1))
    many = list(smalltalk(20_000, 1, families=30))
    assert {q.question for q in many if q.split != "train"} == held
    assert not held & {q.question for q in many if q.split == "train"}
    told = {q.question: q.answer for q in many}
    new = set(told) - {q.question for q in few}
    assert len(new) > 7000
    assert all(told[text] == "the capital of iran is tehran" for text in new if "capital of iran" in text)
    assert any("capital of iran" in text for text in new)
    assert not [text for text in new if re.search(r"\ba [aeio]", text)]


def test_a_family_needs_rows_whose_word_can_be_exchanged():
    rows = [{"id": f"size-{w}", "questions": [f"how big is a {w}", f"is a {w} big"]} for w in ("cat", "owl")]
    training = {row["id"]: list(row["questions"]) for row in rows}
    training["size-cat"].append("what size has a cat")
    assert family_wordings(rows, training, []) == {}  # two are none
    rows += [{"id": f"size-{w}", "questions": [f"how big is a {w}"]} for w in ("dog", "ape")]
    training |= {row["id"]: list(row["questions"]) for row in rows[2:]}
    found = family_wordings(rows, training, ["is a dog big"])
    assert found["size-dog"] == ["what size has a dog"]
    assert found["size-ape"] == ["how big is an ape", "is an ape big", "what size has an ape"]


def test_words_that_belong_to_the_word_of_a_row_go_with_it():
    """An article that all have stays in the pattern, whatever its form."""
    said = {
        "place-tower": [
            "where is the eiffel tower",
            "find the eiffel tower",
            "what does the eiffel tower say",
        ],
        "place-ben": ["where is big ben", "show me big ben", "how big is big ben", "big ben"],
        "place-owl": ["where is an owl", "find an owl"],
        "place-fox": ["where is a fox", "so where is a fox"],
        "place-cow": ["where is a cow", "so where is a cow"],
        "place-ape": ["so where is an ape"],
    }
    rows = [{"id": name, "questions": texts} for name, texts in said.items()]
    found = family_wordings(rows, said, [])
    assert {"find big ben", "so where is a big ben"} <= set(found["place-ben"])
    assert {"show me the eiffel tower", "the eiffel tower"} <= set(found["place-tower"])
    assert {"find an owl", "so where is an owl"} <= {*found["place-owl"], *said["place-owl"]}
    assert "find a cow" in found["place-cow"]
    assert all(len(set(texts)) == len(texts) for texts in found.values())
    assert not [
        text for texts in found.values() for text in texts if "eiffel" in text and "tower" not in text
    ]


def test_wordings_of_the_real_families_keep_whole_names():
    many = smalltalk(20_000, 1, families=30)
    texts = {q.question for q in many if q.id.startswith(("talk.place", "talk.capital"))}
    for word, names in {
        "eiffel": "eiffel tower",
        "south": "south korea",
        "united": "united states",
        "golden": "golden gate bridge",
        "statue": "statue of liberty",
        "taj": "taj mahal",
    }.items():
        holding = [text for text in texts if word in text.split()]
        assert len(holding) > 30 and all(names in text for text in holding)


def test_questions_that_cannot_be_answered_are_made_for_train_alone():
    maker = SentenceMaker()
    plain = list(unknown(100, 20, 30, 1, maker))
    made = list(unknown(100, 20, 30, 1, maker, made=300))
    assert made[: len(plain)] == plain
    new = made[len(plain) :]
    assert {q.split for q in new} == {"train"} and {q.answer for q in new} == {UNKNOWN_ANSWER}
    assert len({q.question for q in new}) > 250
    assert not known_wordings() & {q.question for q in new}
    assert all(normalise(q.question) == q.question for q in new)
