"""The English inflections that the sentence templates need: plurals, verb forms, a or an."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from speechgpt.data.files import read_text

VOWELS = "aeiou"
# Verbs of several syllables that are stressed on the last one double its consonant.
STRESSED_LAST = {"admit", "prefer", "regret", "permit", "occur", "refer", "forget", "begin", "commit"}
SOUNDS_LIKE_YOU = ("uni", "use", "usu", "eu", "one", "once", "ukr", "uto")  # a university, a one
SILENT_H = ("hour", "honest", "honor", "heir")  # an hour


def read_blocks(path: Path) -> Iterator[tuple[str, int, str]]:
    """Yields (block, line number, line) of a text file with [block] headers and # comments."""
    block = ""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            block = line[1:-1]
        elif line and not line.startswith("#"):
            if not block:
                raise ValueError(f"{path}:{number}: expected a [header] before {line!r}")
            yield block, number, line


@dataclass(frozen=True)
class Inflector:
    verbs: dict[str, tuple[str, str]] = field(default_factory=dict)  # plain: (past, past participle)
    nouns: dict[str, str] = field(default_factory=dict)  # singular: plural

    @classmethod
    def load(cls, path: Path) -> "Inflector":
        verbs, nouns = {}, {}
        for block, number, line in read_blocks(path):
            forms = line.split()
            if (block, len(forms)) not in {("verb", 3), ("noun", 2)}:
                raise ValueError(f"{path}:{number}: {line!r} is no [verb] of 3 forms or [noun] of 2")
            if block == "verb":
                verbs[forms[0]] = (forms[1], forms[2])
            else:
                nouns[forms[0]] = forms[1]
        return cls(verbs, nouns)

    def inflect(self, word: str, form: str) -> str:
        """`form`: "+s" plural; ".s" he ...s; ".past"; ".done" past participle; ".ing". Of the right word."""
        if form == "+s":
            head, _, last = word.rpartition(" ")
            return f"{head} {self.nouns.get(last) or _with_s(last)}".strip()
        head, _, rest = word.partition(" ")
        return f"{self._verb(head, form)} {rest}".strip()

    def _verb(self, verb: str, form: str) -> str:
        if form == ".s":
            return _with_s(verb)
        if form in (".past", ".done"):
            if verb in self.verbs:
                return self.verbs[verb][form == ".done"]
            if verb.endswith("e"):
                return verb + "d"
            if verb.endswith("y") and verb[-2] not in VOWELS:
                return verb[:-1] + "ied"
            return _doubled(verb) + "ed"
        if form == ".ing":
            if verb.endswith("ie"):
                return verb[:-2] + "ying"
            if verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")) and verb != "be":
                return verb[:-1] + "ing"
            return _doubled(verb) + "ing"
        raise ValueError(f"unknown form {form!r} of {verb!r}; known: +s .s .past .done .ing")


def _with_s(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh")) or (word.endswith("o") and word[-2] not in VOWELS):
        return word + "es"
    if word.endswith("y") and word[-2] not in VOWELS:
        return word[:-1] + "ies"
    return word + "s"


def _doubled(verb: str) -> str:
    """stop -> stopp, before -ed and -ing."""
    short = (
        len(verb) >= 3
        and verb[-1] not in VOWELS + "wxy"
        and verb[-2] in VOWELS
        and (verb[-3] not in VOWELS or verb[-3:-1] == "ui")
    )
    groups = sum(a in VOWELS and b not in VOWELS for a, b in zip(verb, verb[1:], strict=False))
    return verb + verb[-1] if short and (groups == 1 or verb in STRESSED_LAST) else verb


def article(following: str) -> str:
    """ "a" or "an" before these words."""
    if following.startswith(SOUNDS_LIKE_YOU):
        return "a"
    return "an" if following.startswith((*VOWELS, *SILENT_H)) else "a"
