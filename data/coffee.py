"""Spoken orders to a coffee machine: slots to every wording that says them, and back.

An order is an opening, `a` or `an`, any of size, roast and shots in any order, the drink, and optionally
`with` milk, sugar, or both in either order.
"""

import random
import re
from collections.abc import Iterator, Mapping
from itertools import permutations

OPENINGS = (
    *("brew", "can i get", "can i have", "i want", "get me", "give me", "i'd like", "make me", "may i have"),
)
AMOUNTS = ("a little bit of", "a bit of", "some", "a lot of", "lots of")
MILKS = ("milk", "skim milk", "whole milk", "soy milk", "almond milk", "cream")
SUGARS = ("sugar", "brown sugar", "sweetener")
VALUES = {
    "size": (
        *("small", "medium", "large"),
        *("eight ounce", "twelve ounce", "sixteen ounce", "twenty ounce"),
    ),
    "roast": ("light roast", "medium roast", "dark roast"),
    "numberOfShots": ("single shot", "double shot", "triple shot"),
    "coffeeDrink": (
        *("americano", "cappuccino", "espresso", "iced mocha", "latte", "mocha"),
        *("coffee", "drip coffee", "house coffee", "iced coffee"),
    ),
    "milkAmount": tuple(f"{a} {m}".strip() for m in MILKS for a in ("", *AMOUNTS)),
    "sugarAmount": tuple(f"{a} {s}".strip() for s in SUGARS for a in ("", *AMOUNTS)),
}
BEFORE = ("size", "roast", "numberOfShots")  # any order in a question, this order in an answer
AFTER = ("milkAmount", "sugarAmount")
ANSWER_OPENING = "okay here is your order"

Slots = Mapping[str, str]


def parse_slots(text: str) -> dict[str, str]:
    """ "coffeeDrink=latte; size=small" to a dict. Raises ValueError for an unknown slot or value."""
    slots = {}
    for item in text.split(";"):
        name, _, value = (part.strip() for part in item.partition("="))
        if value not in VALUES.get(name, ()):
            raise ValueError(f"{name}={value!r} is not in the coffee grammar; slots: {', '.join(VALUES)}")
        slots[name] = value
    if "coffeeDrink" not in slots:
        raise ValueError(f"slots {text!r} name no coffeeDrink")
    return slots


def format_slots(slots: Slots) -> str:
    return "; ".join(f"{name}={slots[name]}" for name in sorted(slots))


def article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


def phrase(slots: Slots, before: tuple[str, ...] = BEFORE, after: tuple[str, ...] = AFTER) -> str:
    """ "a large dark roast latte with some milk": the slots in words, in the order that is asked for."""
    words = " ".join([*(slots[n] for n in before if n in slots), slots["coffeeDrink"]])
    extras = " and ".join(slots[n] for n in after if n in slots)
    return f"{article(words)} {words}" + (f" with {extras}" if extras else "")


def answer(slots: Slots) -> str:
    """The one fixed wording that repeats every slot."""
    return f"{ANSWER_OPENING} {phrase(slots)}"


def parse(text: str) -> dict[str, str]:
    """The slots that an order or an answer names, in any wording; {} where no drink is named."""
    text = " " + " ".join(re.sub(r"[^a-z' ]", " ", text.lower()).split()) + " "
    slots = {}
    # Roast and shots before size, milk and sugar before the drink: "medium" and "mocha" stand in both.
    for name in ("roast", "numberOfShots", "milkAmount", "sugarAmount", "size", "coffeeDrink"):
        # Longest first, so that "a bit of soy milk" is not read as "milk".
        for value in sorted(VALUES[name], key=len, reverse=True):
            if f" {value} " in text:
                slots[name] = value
                text = text.replace(f" {value} ", " | ", 1)
                break
    return slots if "coffeeDrink" in slots else {}


def wordings(slots: Slots) -> Iterator[str]:
    """Every sentence that says exactly these slots, without the opening."""
    before = [n for n in BEFORE if n in slots]
    after = [n for n in AFTER if n in slots]
    for first in permutations(before):
        for last in permutations(after):
            yield phrase(slots, first, last)


def jsgf(slots: Slots) -> str:
    """A JSGF grammar of every order that says exactly these slots, with every opening."""
    return (
        "#JSGF V1.0;\ngrammar order;\n"
        f"<opening> = {' | '.join(OPENINGS)};\n"
        f"<body> = {' | '.join(wordings(slots))};\n"
        "public <order> = <opening> <body>;\n"
    )


def any_order_jsgf() -> str:
    """A JSGF grammar of every order there is."""
    rules = {name: " | ".join(values) for name, values in VALUES.items()} | {"opening": " | ".join(OPENINGS)}
    before = " | ".join(" ".join(f"[<{name}>]" for name in order) for order in permutations(BEFORE))
    milk, sugar = (f"<{name}>" for name in AFTER)
    after = f"{milk} | {sugar} | {milk} and {sugar} | {sugar} and {milk}"
    body = f"<opening> (a | an) ({before}) <coffeeDrink> [with ({after})]"
    written = "".join(f"<{name}> = {rule};\n" for name, rule in rules.items())
    return f"#JSGF V1.0;\ngrammar order;\n{written}public <order> = {body};\n"


def is_wording(text: str, slots: Slots) -> bool:
    """Whether `text` is a whole order that says exactly these slots."""
    return any(text.endswith(f" {body}") and text[: -len(body) - 1] in OPENINGS for body in wordings(slots))


def draw_slots(rng: random.Random, chance: float = 0.5) -> dict[str, str]:
    """Random slots: the drink, each other slot with `chance`; half of milk and sugar without an amount."""
    slots = {"coffeeDrink": rng.choice(VALUES["coffeeDrink"])}
    for name in ("size", "roast", "numberOfShots"):
        if rng.random() < chance:
            slots[name] = rng.choice(VALUES[name])
    for name, kinds in (("milkAmount", MILKS), ("sugarAmount", SUGARS)):
        if rng.random() < chance:
            amount = rng.choice(AMOUNTS) if rng.random() < 0.5 else ""
            slots[name] = f"{amount} {rng.choice(kinds)}".strip()
    return slots


def draw_order(slots: Slots, rng: random.Random, polite: float = 0.0) -> str:
    """One random wording of an order; with the chance `polite` a "please" follows, which no grammar has."""
    before = [n for n in BEFORE if n in slots]
    after = [n for n in AFTER if n in slots]
    rng.shuffle(before)
    rng.shuffle(after)
    text = f"{rng.choice(OPENINGS)} {phrase(slots, tuple(before), tuple(after))}"
    return f"{text} please" if rng.random() < polite else text
