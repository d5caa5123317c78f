"""Text as it is trained on and judged: lower-case words with apostrophes, numbers spelled out."""

import re
import unicodedata

ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
SCALES = ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth"}
ORDINALS |= {"nine": "ninth", "twelve": "twelfth"}
SIGNS = {"&": " and ", "%": " percent ", "+": " plus ", "=": " equals ", "@": " at ", "°": " degrees "}
QUOTES = str.maketrans({"’": "'", "‘": "'", "`": "'", "ʼ": "'"})
SPOKEN_DIGITS_FROM = 10**12  # from here, and with a leading zero, digits are read one by one


def number_words(number: int) -> str:
    """1234 -> "one thousand two hundred thirty four"."""
    if number < 0:
        return "minus " + number_words(-number)
    if number < 20:
        return ONES[number]
    for scale, name in SCALES:
        if number >= scale:
            rest = f" {number_words(number % scale)}" if number % scale else ""
            return f"{number_words(number // scale)} {name}{rest}"
    return TENS[number // 10] + (f" {ONES[number % 10]}" if number % 10 else "")


def ordinal_words(number: int) -> str:
    """21 -> "twenty first"."""
    head, _, last = number_words(number).rpartition(" ")
    if last in ORDINALS:
        last = ORDINALS[last]
    else:
        last = (last[:-1] + "ie" if last.endswith("y") else last) + "th"
    return f"{head} {last}".strip()


def digit_words(digits: str) -> str:
    """ "407" -> "four zero seven"."""
    return " ".join(ONES[int(d)] for d in digits)


def _cardinal(digits: str) -> str:
    if (len(digits) > 1 and digits[0] == "0") or int(digits) >= SPOKEN_DIGITS_FROM:
        return digit_words(digits)
    return number_words(int(digits))


def _money(match: re.Match) -> str:
    name = {"$": "dollar", "£": "pound", "€": "euro"}[match[1]]
    return f" {_cardinal(match[2])} {name if match[2] == '1' else name + 's'} "


def _clock(match: re.Match) -> str:
    minutes = match[2]
    if minutes == "00":
        return f" {_cardinal(match[1])} o'clock "
    spoken = f"oh {ONES[int(minutes)]}" if minutes[0] == "0" else number_words(int(minutes))
    return f" {number_words(int(match[1]))} {spoken} "


def normalise(text: str) -> str:
    """ "It's 3:30, Dr. Who!" -> "it's three thirty dr who": what is compared, trained on and answered.

    Lower case; letters a to z and apostrophes inside words only; accents dropped; digits spelled.
    """
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.translate(QUOTES))
    text = re.sub(r"([$£€])(\d+)\b(?![.]\d)", _money, text, flags=re.ASCII)
    for sign, word in SIGNS.items():
        text = text.replace(sign, word)
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    text = re.sub(r"\b(\d{1,2}):([0-5]\d)\b", _clock, text)
    text = re.sub(r"(\d+)(?:st|nd|rd|th)\b", lambda m: f" {ordinal_words(int(m[1]))} ", text)
    text = re.sub(r"(\d+)\.(\d+)", lambda m: f" {_cardinal(m[1])} point {digit_words(m[2])} ", text)
    text = re.sub(r"\d+", lambda m: f" {_cardinal(m[0])} ", text)
    text = re.sub(r"[^a-z']", " ", text)
    # Apostrophes that hold nothing together are quotation marks; a leading one ('tis) is kept by nobody.
    text = re.sub(r"(?<![a-z])'+|'+(?![a-z])", " ", text)
    return " ".join(text.split())
