"""Words that the texts seldom say, in lists: how a word is spelled is learnt from hearing it a few times.

The vocabulary comes from prose (`speechgpt.data.prose`), of WordNet's files with their definitions. The words
of a list have nothing to do with each other: what cannot be guessed must be heard.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from speechgpt.data.prose import WORDNET
from speechgpt.data.text_normal import normalise

SHORTEST = 3  # letters: abbreviations are read in many ways
LIST_LENGTHS = (3, 6)  # words
_PLAIN_WORD = re.compile(r"(?<![\w.'-])[A-Za-z][a-z]+(?:'[a-z]+)?(?![\w'-]|\.\w)")


def prose_words(files: Mapping[Path, str]) -> Counter[str]:
    """How often the prose says each word of three letters or more: no abbreviations, numbers, compounds.

    files: {file: its text}, as `read_prose` gives them. Of WordNet's all glosses are counted, definitions and
    examples.
    """
    said: Counter[str] = Counter()
    for path, text in files.items():
        if path.name in WORDNET:
            text = "\n".join(line.partition(" | ")[2] for line in text.splitlines())
        said.update(word.lower() for word in _PLAIN_WORD.findall(text) if len(word) >= SHORTEST)
    return said


def rare_word_lists(
    said: Mapping[str, int], vocabulary: Iterable[str], sayings: int, seed: int
) -> Iterator[str]:
    """Lists of three to six words, which say each of the vocabulary as often as `said` lacks of `sayings`.

    The same seed gives the same lists.
    """
    rng = random.Random(f"{seed} rare words")
    missing = {
        word: sayings - said.get(word, 0) for word in sorted(set(vocabulary)) if normalise(word) == word
    }
    rounds = [[word for word, n in missing.items() if n > turn] for turn in range(sayings)]
    for words in rounds:
        rng.shuffle(words)
    left = [word for words in rounds for word in words]
    while left:
        length = rng.randint(*LIST_LENGTHS)
        yield " ".join(left[:length])
        left = left[length:]
