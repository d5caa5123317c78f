"""More wordings of questions that come in families: what is asked of one capital can be asked of all.

The rows of small talk whose ids share all but their last part (opposite-old, opposite-day) are a family,
where that last part is the word that their wordings differ in. A training wording of one becomes one of the
others.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence

from speechgpt.data.english import article

SMALLEST = 4  # rows of a family
SHARE = 0.6  # of a row's wordings must hold its word
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
        patterns = dict.fromkeys(
            pattern for name, word in members for pattern in _patterns(training[name], word)
        )
        for name, word in members:
            known = {*taken, *training[name]}
            for pattern in patterns:
                text = _filled(pattern, word)
                if text not in known:
                    found[name].append(text)
    return dict(found)


def _patterns(texts: Sequence[str], word: str) -> list[str]:
    """The texts that hold the word once, with a hole in its place."""
    split = [text.split() for text in texts]
    return [" ".join(HOLE if w == word else w for w in words) for words in split if words.count(word) == 1]


def _filled(pattern: str, word: str) -> str:
    return re.sub(rf"\b(a|an) {re.escape(HOLE)}", f"{article(word)} {HOLE}", pattern).replace(HOLE, word)
