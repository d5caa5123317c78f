"""Units as the published text `<sosp><661><987>…<eosp>` and back."""

import re
from collections.abc import Sequence

_WHOLE = re.compile(r"<sosp>(?:<[0-9]{1,10}>)*<eosp>")


def units_to_text(units: Sequence[int]) -> str:
    """[661, 987] -> "<sosp><661><987><eosp>": decimal, no spaces, as SpeechInstruct spells units."""
    return "<sosp>" + "".join(f"<{int(u)}>" for u in units) + "<eosp>"


def text_to_units(text: str, codebook_size: int | None = None) -> list[int]:
    """The inverse of `units_to_text`. Raises ValueError for anything else, or a unit out of range."""
    text = text.strip()
    if not _WHOLE.fullmatch(text):
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise ValueError(f"not units: {shown!r}; expected <sosp><12><7>...<eosp>")
    units = [int(u) for u in re.findall(r"<(\d+)>", text)]
    if codebook_size is not None and units and max(units) >= codebook_size:
        raise ValueError(f"unit {max(units)} is out of range: the codebook has {codebook_size}")
    return units
