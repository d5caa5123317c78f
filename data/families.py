"""More wordings of questions that come in families: what is asked of one capital can be asked of all.

The rows of small talk whose ids share all but their last part (opposite-old, opposite-day) are a family,
where that last part is the word that their wordings differ in. A training wording of one becomes one of the
others. Words that belong to a row's word go with it ("the eiffel" tower, "south" korea).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

from speechgpt.data.english import article

SMALLEST = 4  # rows of a family
SHARE = 0.6  # of a row's wordings must hold its word
BELONGS = (
    0.8  # of them have one word before it, which less than half of the rows ever have there: it goes with it
)
HOLE = "{}"


def family_wordings(
    rows: Sequence[dict], training: dict[str, list[str]], taken: Collection[str]
) -> dict[str, list[str]]:
    """{row id: new wordings}; training: {row id: its training wordings}; `taken` are texts not to make.

    Wordings that are held back are in `taken`, and in no `training`: they are never made nor copied.
    """
    families: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in rows:
        stem, _, word = row["id"].rpartition("-")
        holding = sum(word in text.split() for text in row["questions"])
        if stem and holding >= SHARE * len(row["questions"]):
            families[stem].append((row["id"], word))
    found: dict[str, list[str]] = defaultdict(list)
    for members in families.values():
        if len(members) < SMALLEST:
            continue
        phrases = _phrases({name: word for name, word in members}, training)
        patterns = dict.fromkeys(
            pattern for name, phrase in phrases.items() for pattern in _patterns(training[name], phrase)
        )
        for name, phrase in phrases.items():
            known = {*taken, *training[name]}
            for pattern in patterns:
                text = _filled(pattern, phrase)
                if text not in known:
                    found[name].append(text)
                    known.add(text)  # "a {}" and "an {}" are one pattern, once filled
    return dict(found)


def _phrases(words: dict[str, str], training: dict[str, list[str]]) -> dict[str, str]:
    """{row id: its word, with the words before it that are its own and not the family's}."""
    phrases = dict(words)
    while True:
        before = {name: _before(training[name], phrase) for name, phrase in phrases.items()}
        rows = Counter(word for found in before.values() for word in {_plain(w) for w in found})
        own = {}
        for name, found in before.items():
            word, times = found.most_common(1)[0] if found else ("", 0)
            if word and times >= BELONGS * found.total() and rows[_plain(word)] < len(words) / 2:
                own[name] = f"{word} {phrases[name]}"
        if not own:
            return phrases
        phrases |= own


def _plain(word: str) -> str:
    return "a" if word == "an" else word


def _before(texts: Sequence[str], phrase: str) -> Counter[str]:
    """How often which word stands before the phrase; "": it begins the text."""
    found = [re.search(rf"(?:^|(\S+) ){re.escape(phrase)}(?!\S)", text) for text in texts]
    return Counter(match[1] or "" for match in found if match)


def _patterns(texts: Sequence[str], phrase: str) -> list[str]:
    """The texts that hold the phrase once, with a hole in its place."""
    whole = re.compile(rf"(?<!\S){re.escape(phrase)}(?!\S)")
    return [whole.sub(HOLE, text) for text in texts if len(whole.findall(text)) == 1]


def _filled(pattern: str, phrase: str) -> str:
    fitted = re.sub(rf"\b(a|an) {re.escape(HOLE)}", f"{article(phrase)} {HOLE}", pattern)
    return fitted.replace(HOLE, phrase)
