"""The texts of the `mini` preset, from a seed: sentences to learn speech from, and questions with answers.

Written are sentences.jsonl, questions.jsonl and answers.jsonl for `speechgpt synthesize`, and qa.jsonl, whose
row says that the question's audio has the id `ID.q` and the answer's `ANSWER_ID.a`. Recorded orders and
digits (`--speech`) get rows too; there the question's audio is the recording, with its own id. What other
people say in the recordings is spoken once more by the synthesiser. Of English prose (`--prose`) a part is
spoken, and a part stands in text.jsonl for the language model alone.
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from speechgpt.data.files import write_jsonl
from speechgpt.data.mini_recordings import Recordings, read_recordings
from speechgpt.data.prose import HeldOut, choose_pieces, prose_pieces, read_prose
from speechgpt.data.qa_sentences import answer_sentences, write_sentences
from speechgpt.data.questions import (
    Question,
    digits,
    orders,
    repeats,
    smalltalk,
    split_of,
    sums,
    unknown,
)
from speechgpt.data.rare_words import prose_words, rare_word_lists
from speechgpt.data.sentences import SentenceMaker, digit_string
from speechgpt.data.settings import load_settings
from speechgpt.data.synthesize import Sentence
from speechgpt.data.text_normal import ONES, number_words
from speechgpt.data.voices import resolve

LONGEST_SENTENCE = 12  # words


@dataclass(frozen=True)
class MiniConfig:
    seed: int
    # how many are spoken, held-out ones included
    sentences: int  # from the templates
    word_lists: int  # two to six words without connection
    words: int  # single words
    digit_strings: int  # one to seven digits
    numbers: int
    held_out_sentences: int  # of `sentences`, for dev, and as many for test
    prose: int  # pieces of --prose
    held_out_prose: int  # of `prose`, for dev, and as many for test; fewer where train says them
    prose_text: int  # pieces more that nobody speaks, all of train
    prose_word_times: int  # as often must the prose say a word that is in no other text, for it to be known
    recorded_texts: int  # what the recordings' train split says besides questions, in synthetic voices
    orders: int
    held_out_orders: int  # for dev, and as many for test
    digits: int
    sums: int
    repeats: int
    smalltalk: int
    unknown: int  # spoken questions of qa/unknown.txt
    unknown_sentences: int  # sentences of the templates, as what cannot be answered
    held_out_questions: int  # of digits, sums, repeats and unknown each, for dev, and as many for test
    # voices: {"selection as for --voices": share}
    voices_train: dict[str, float]
    voices_dev: dict[str, float]
    voices_test: dict[str, float]
    answer_voice: str
    answer_voice_share: float  # of the training sentences, so that it says more than the answers
    smalltalk_family: int = 0  # wordings more of each row of small talk, from others of its family
    unknown_made: int = 0  # questions that cannot be answered, from templates, all of train
    sums_read: int = 0  # more sums, which nobody speaks: the table is learnt from text
    prose_again: int = 0  # pieces of the training prose that a second voice says too
    rare_word_sayings: int = 0  # as often, at least, is each word of the prose said: lists of words see to it
    single_digits: int = 0  # more of them: each training voice in turn says zero to nine
    rare_word_times: int = 3  # as often must the prose (with WordNet's definitions) say a word to be one

    def __post_init__(self) -> None:
        for selection in (*self.voices_train, *self.voices_dev, *self.voices_test, self.answer_voice):
            resolve(selection)


class Casting:
    """Gives every sentence a voice of its split; no voice is in two splits."""

    def __init__(self, config: MiniConfig):
        self.config = config
        self.shares = {
            split: [(resolve(selection), float(share)) for selection, share in voices.items()]
            for split, voices in (
                ("train", config.voices_train),
                ("dev", config.voices_dev),
                ("test", config.voices_test),
            )
        }
        self.pools = pools = {
            split: {v for voices, _ in s for v in voices} for split, s in self.shares.items()
        }
        for a, b in (("train", "dev"), ("train", "test"), ("dev", "test")):
            if both := pools[a] & pools[b]:
                raise ValueError(f"voices {', '.join(sorted(both))} are in {a} and in {b}")

    def voice(self, identity: str, split: str) -> str:
        rng = random.Random(f"{self.config.seed} voice {identity}")
        pools, shares = zip(*self.shares[split], strict=True)
        return rng.choice(rng.choices(pools, shares)[0])

    def sentence_voice(self, identity: str, split: str) -> str:
        rng = random.Random(f"{self.config.seed} own {identity}")
        own = split == "train" and rng.random() < self.config.answer_voice_share
        return self.config.answer_voice if own else self.voice(identity, split)


def plain_sentences(config: MiniConfig, maker: SentenceMaker) -> Iterator[tuple[str, str, str]]:
    """(id, text, split): template sentences, no two alike, then word lists, words, digits and numbers."""
    rng, seen = random.Random(f"{config.seed} sentences"), set()
    held = config.held_out_sentences
    while len(seen) < config.sentences:
        text = maker.sentence(rng)
        if text in seen or not 3 <= len(text.split()) <= LONGEST_SENTENCE:
            continue
        yield f"sentence.{len(seen):05d}", text, split_of(len(seen), held, held)
        seen.add(text)
    rng = random.Random(f"{config.seed} words")
    for number in range(config.word_lists):
        yield f"list.{number:05d}", maker.word_list(rng), "train"
    vocabulary = list(maker.vocabulary)
    rng.shuffle(vocabulary)
    for number in range(config.words):
        yield f"word.{number:05d}", vocabulary[number % len(vocabulary)], "train"
    for number in range(config.digit_strings):
        yield f"digits.{number:05d}", digit_string(rng), "train"
    for number in range(config.numbers):
        yield f"number.{number:05d}", number_words(rng.randint(0, 10 ** rng.randint(1, 6))), "train"


def single_digits(config: MiniConfig, casting: Casting) -> Iterator[Sentence]:
    """A corpus of their own, mini-digits: recordings of digits are cut short, and so are copies of these."""
    voices = sorted(casting.pools["train"])
    for number in range(config.single_digits):
        voice = voices[number // 10 % len(voices)]
        yield Sentence(f"single.{number:05d}", ONES[number % 10], voice, "train", "mini-digits")


def spoken_again(config: MiniConfig, recordings: Recordings) -> Iterator[tuple[str, str, str]]:
    """(id, text, split) of what people say, in random order; begins anew when all were said."""
    texts = list(recordings.texts)
    if config.recorded_texts and not texts:
        raise ValueError(
            f"recorded_texts is {config.recorded_texts}, but --speech names no manifest with train rows that "
            "say anything but questions; give one (make: SPEECH=), or set recorded_texts to 0"
        )
    random.Random(f"{config.seed} recorded texts").shuffle(texts)
    for number in range(config.recorded_texts):
        yield f"said.{number:05d}", texts[number % len(texts)], "train"


def prose(
    config: MiniConfig,
    files: Mapping[Path, str],
    known: Iterable[str],
    held_out: HeldOut,
    trained: Iterable[str] = (),
) -> tuple[list[tuple[str, str, str]], list[str]]:
    """((id, text, split) of what is spoken, and the texts that are not); `known` are texts of known words.

    Of the pieces for dev and test those are left out that train says: other pieces, or texts in `trained`.
    `files` are as `read_prose` gives them.
    """
    count = config.prose + config.prose_text
    if not count:
        return [], []
    if not files:
        raise ValueError(
            f"prose is {config.prose} and prose_text {config.prose_text}, but there is no --prose (make: "
            "PROSE=); give .txt files of English prose or folders of them, books of Project Gutenberg or the "
            "data.noun, data.verb ... of WordNet (Debian's wordnet-base); or set both to 0"
        )
    words = {word for text in known for word in text.split()}
    pieces = prose_pieces(files, config.seed)
    chosen = choose_pieces(pieces, count, words, config.prose_word_times, held_out, config.seed)
    held = config.held_out_prose
    train = HeldOut([*trained, *chosen[2 * held :]])
    spoken = []
    for number, text in enumerate(chosen[: config.prose]):
        split = split_of(number, held, held)
        if split != "train" and train.says(text):
            continue
        times = 2 if 2 * held <= number < 2 * held + config.prose_again else 1
        spoken += [(f"prose.{number:05d}" + f".{n}" * (n > 0), text, split) for n in range(times)]
    return spoken, chosen[config.prose :]


def rare_words(
    config: MiniConfig, files: Mapping[Path, str], texts: Iterable[tuple[str, str]]
) -> list[tuple[str, str, str]]:
    """(id, text, "train") of lists of words that the training part of `texts`, (text, split), seldom says."""
    if not config.rare_word_sayings:
        return []
    if not files:
        raise ValueError(
            f"rare_word_sayings is {config.rare_word_sayings}, but there is no --prose to take words of"
        )
    said = Counter(word for text, split in texts if split == "train" for word in text.split())
    vocabulary = {word for word, n in prose_words(files).items() if n >= config.rare_word_times}
    lists = rare_word_lists(said, vocabulary, config.rare_word_sayings, config.seed)
    return [(f"rare.{number:05d}", text, "train") for number, text in enumerate(lists)]


def questions(
    config: MiniConfig, maker: SentenceMaker, recordings: Sequence[Question] = ()
) -> list[Question]:
    """All questions: those to be spoken, and those of `recordings`."""
    held, seed = config.held_out_questions, config.seed
    rows = [
        *orders(config.orders, config.held_out_orders, seed, recordings),
        *digits(config.digits, held, seed),
        *sums(config.sums, held, seed),
        *repeats(config.repeats, held, seed, maker),
        *smalltalk(config.smalltalk, seed, families=config.smalltalk_family),
        *unknown(config.unknown, config.unknown_sentences, held, seed, maker, made=config.unknown_made),
        *recordings,
    ]
    if repeated := [i for i, n in Counter(row.id for row in rows).items() if n > 1]:
        raise ValueError(f"question id {repeated[0]!r} appears twice")
    return rows


def build(
    config: MiniConfig,
    out: Path,
    recordings: Recordings | None = None,
    books: Sequence[Path] = (),
) -> dict[str, int]:
    """Writes the files; returns {file name: rows}. There is no text.jsonl where prose_text is 0."""
    recordings = recordings or Recordings()
    maker, casting = SentenceMaker(), Casting(config)
    rows = questions(config, maker, recordings.questions)
    more = islice(
        sums(config.sums + config.sums_read, config.held_out_questions, config.seed), config.sums, None
    )
    unspoken = [replace(row, id=f"read.{row.id}") for row in more]
    plain = [*plain_sentences(config, maker), *spoken_again(config, recordings)]
    texts = [(text, split) for _, text, split in plain] + [(r.question, r.split) for r in rows]
    kept = HeldOut([*recordings.held_out.texts, *(text for text, split in texts if split != "train")])
    known = [*maker.vocabulary, *(text for text, _ in texts)]
    trained = [text for text, split in texts if split == "train"] + recordings.texts
    trained += [row.answer for row in rows if row.split == "train"]
    needed = config.prose or config.prose_text or config.rare_word_sayings
    files = read_prose(books) if needed else {}
    read_aloud, read = prose(config, files, known, kept, trained)
    read_aloud += rare_words(config, files, [*texts, *((text, split) for _, text, split in read_aloud)])
    spoken = [
        Sentence(i, text, casting.sentence_voice(i, split), split, "mini-sentences")
        for i, text, split in [*plain, *read_aloud]
    ]
    spoken += single_digits(config, casting)
    asked = [
        Sentence(f"{r.id}.q", r.question, casting.voice(r.id, r.split), r.split, "mini-questions")
        for r in rows
        if not r.question_id
    ]
    answers = answer_sentences(rows, config.answer_voice, "mini-answers")
    counts = {}
    for name, sentences in (("sentences", spoken), ("questions", asked), ("answers", answers)):
        counts[f"{name}.jsonl"] = write_sentences(out / f"{name}.jsonl", sentences)
    (out / "text.jsonl").unlink(missing_ok=True)
    if read:
        written = ({"id": f"text.{number:06d}", "text": text} for number, text in enumerate(read))
        counts["text.jsonl"] = write_jsonl(out / "text.jsonl", written)
    counts["qa.jsonl"] = write_jsonl(out / "qa.jsonl", (row.row() for row in [*rows, *unspoken]))
    return counts


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="speechgpt mini-corpus", description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="YAML: presets/mini/corpus.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument(
        "--speech",
        type=Path,
        nargs="+",
        default=[],
        metavar="MANIFEST",
        help="recorded orders, digits, texts",
    )
    parser.add_argument(
        "--prose", type=Path, nargs="+", default=[], metavar="PATH", help="English .txt books or WordNet's "
        "data.noun, data.verb ..., or folders of them"
    )  # fmt: skip
    args = parser.parse_args(argv)
    config = load_settings(MiniConfig, args.config)
    counts = build(config, args.out, read_recordings(args.speech), args.prose)
    for name, count in counts.items():
        print(f"{args.out / name}: {count} rows")
    print(
        f"{sum(counts.values()) - counts['qa.jsonl'] - counts.get('text.jsonl', 0)} utterances to be spoken"
    )
    return 0
