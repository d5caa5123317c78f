"""Random English sentences from editable word lists and templates: what `mini` learns to hear and say."""

import random
import re
from functools import cached_property
from pathlib import Path

from speechgpt.data.english import Inflector, article, read_blocks
from speechgpt.data.files import read_text
from speechgpt.data.text_normal import ONES, number_words, ordinal_words

TEXT = Path(__file__).with_name("text")
MADE = {"number", "ordinal", "digit", "hour"}  # categories that are computed, not listed
PLURALS = ("animal", "job", "person", "family", "food", "thing", "clothing", "vehicle", "building", "idea")
_WORD = re.compile(r"([a-z_]+?)(\+s|\.[a-z]+)?('s)?")


class SentenceMaker:
    """Draws sentences; equal seeds of `rng` give equal sentences."""

    def __init__(self, folder: Path = TEXT):
        """`folder` holds words.txt, irregular.txt, templates.txt. Raises ValueError naming a broken line."""
        self.inflector = Inflector.load(folder / "irregular.txt")
        self.words: dict[str, list[str]] = {}
        for block, _, line in read_blocks(folder / "words.txt"):
            self.words.setdefault(block, []).extend(w.replace("_", " ") for w in line.split())
        self.templates = self.read_templates(folder / "templates.txt")

    def read_templates(self, path: Path) -> list[str]:
        """One a line. Raises ValueError naming a broken line."""
        templates = []
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if line.strip() and not line.startswith("#"):
                self._check(line.strip(), f"{path}:{number}")
                templates.append(line.strip())
        return templates

    def _check(self, template: str, where: str) -> None:
        left = re.sub(r"[\[\]]", "", re.sub(r"\{[^{}\[\]]+\}", "", template))
        if re.search(r"[^a-z' ]", left):
            raise ValueError(
                f"{where}: {template!r}: stray sign; expected words, {{category}} and [optional]"
            )
        for body in re.findall(r"\{([^}]*)\}", template):
            known = [w for w in body.split() if self._category(w)]
            if "|" not in body and not known:
                raise ValueError(f"{where}: unknown category {body!r}; known: {', '.join(self.words)}")

    def _category(self, word: str) -> re.Match | None:
        match = _WORD.fullmatch(word)
        return match if match and (match[1] in self.words or match[1] in MADE) else None

    def sentence(self, rng: random.Random) -> str:
        return self.expand(rng.choice(self.templates), rng)

    def expand(self, template: str, rng: random.Random) -> str:
        """Fills one template: optional parts, alternatives, categories, then the articles."""
        text = re.sub(r"\[([^\]]*)\]", lambda m: m[1] if rng.random() < 0.5 else "", template)

        def choose(match: re.Match) -> str:
            return " ".join(self._word(w, rng) for w in rng.choice(match[1].split("|")).split())

        words = re.sub(r"\{([^}]*)\}", choose, text).split()
        for place, word in enumerate(words[:-1]):
            if word in ("a", "an"):
                words[place] = article(words[place + 1])
        return " ".join(words)

    def _word(self, word: str, rng: random.Random) -> str:
        match = self._category(word)
        if not match:
            return word
        category, form, possessive = match.groups()
        drawn = self._made(category, rng) if category in MADE else rng.choice(self.words[category])
        return (self.inflector.inflect(drawn, form) if form else drawn) + (possessive or "")

    def _made(self, category: str, rng: random.Random) -> str:
        if category == "digit":
            return rng.choice(ONES[:10])
        if category == "ordinal":
            return ordinal_words(rng.randint(1, 31))
        if category == "hour":
            hour = ONES[rng.randint(1, 12)]
            before = rng.choice(("five", "ten", "twenty", "a quarter", "half"))
            after = rng.choice(("o'clock", "fifteen", "thirty", "forty five"))
            return rng.choice((f"{before} past {hour}", f"{hour} {after}"))
        return number_words(draw_number(rng))

    @cached_property
    def vocabulary(self) -> list[str]:
        """Every single word that is listed, with its inflected forms, or stands in a template; sorted."""
        found: set[str] = set(ONES)
        for template in self.templates:
            found.update(w for w in re.sub(r"[{}|\[\]]", " ", template).split() if not self._category(w))
        found -= {w for w in found if re.search("[^a-z']", w)}
        for category, entries in self.words.items():
            forms: tuple[str, ...] = (".s", ".past", ".ing", ".done") if category.startswith("v_") else ()
            forms = ("+s",) if category in PLURALS else forms
            for entry in entries:
                found.update(entry.split())
                for form in forms:
                    found.update(self.inflector.inflect(entry, form).split())
        return sorted(found)

    def word_list(self, rng: random.Random, shortest: int = 2, longest: int = 6) -> str:
        """Words that have nothing to do with each other: what cannot be guessed must be heard."""
        return " ".join(rng.choice(self.vocabulary) for _ in range(rng.randint(shortest, longest)))


def draw_number(rng: random.Random) -> int:
    """Small numbers more often than large ones, round ones more often than others."""
    kind = rng.random()
    if kind < 0.4:
        return rng.randint(1, 20)
    if kind < 0.7:
        return rng.randint(21, 99)
    if kind < 0.8:
        return rng.choice((100, 200, 300, 500, 1000, 2000, 5000, 1_000_000))
    return rng.randint(101, 999) if kind < 0.95 else rng.randint(1001, 9999)


def digit_string(rng: random.Random, shortest: int = 1, longest: int = 7) -> str:
    return " ".join(rng.choice(ONES[:10]) for _ in range(rng.randint(shortest, longest)))
