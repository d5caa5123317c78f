"""Clips, pictures and texts as one static HTML page: no scripts, nothing fetched, all media inside."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from speechgpt.picture import HEIGHT, WIDTH
from speechgpt.report_page import document
from speechgpt.turn_lines import one_row

STYLE = """
:root{color-scheme:light dark;--good:#1d7a46}@media (prefers-color-scheme:dark){:root{--good:#6fcf97}}
nav a{color:var(--accent);margin-right:1rem}
article.card{padding:.9rem 1rem 1rem;margin:.9rem 0}
article h3{font-size:.78rem;font-weight:400;color:var(--soft);margin:0 0 .5rem;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:5.2rem 1fr;gap:.15rem .6rem;margin:0 0 .8rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}dd b,dd small{font-size:.8rem;margin-left:.5rem}
dd small{display:inline}.ok{color:var(--good)}
.clips{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(17rem,100%),1fr));gap:.9rem}
figure{margin:0}figcaption{font-size:.85rem;color:var(--soft);margin-bottom:.25rem}
figure img{display:block;width:100%;height:auto}
audio{display:block;width:100%;height:2.5rem;margin-top:.35rem}
"""


@dataclass(frozen=True)
class Clip:
    """A sound with its picture; without seconds, nothing was said."""

    name: str
    seconds: float = 0.0
    sound: bytes = b""  # an MP3 file
    picture: bytes = b""  # a WebP file


@dataclass(frozen=True)
class Line:
    name: str
    text: str
    right: bool | None = None  # None: nobody knows
    note: str = ""


@dataclass(frozen=True)
class Item:
    source: str  # where the recording is from
    lines: list[Line]
    clips: list[Clip]


@dataclass(frozen=True)
class Section:
    title: str  # one word, which is its anchor as well
    text: str
    items: list[Item]
    summary: str = ""


def render(title: str, facts: Mapping[str, Any], sections: Sequence[Section], whose: str) -> str:
    """The whole page. `whose` recordings they are: how its first sentence begins."""
    links = "".join(f"<a href='#{escape(s.title)}'>{escape(s.title)}</a>" for s in sections)
    intro = (
        f"<nav>{links}</nav><p>{escape(whose)}, and what the model makes of them. All clips are equally "
        "loud, but for those whose peaks do not let them be. A picture shows the waveform and, from "
        "0&nbsp;Hz up, the spectrogram; those of an item share one time axis. A few rows say how it sounds; "
        "how good it is on all of them, an evaluation says.</p>"
    )
    return document(title, facts, intro + "".join(_section(section) for section in sections), STYLE)


def _section(section: Section) -> str:
    summary = f"<p><b>{escape(section.summary)}</b></p>" if section.summary else ""
    return (
        f"<section id='{escape(section.title)}'><h2>{escape(section.title)}</h2><p>{escape(section.text)}</p>"
        f"{summary}{''.join(_item(item) for item in section.items)}</section>"
    )


def _item(item: Item) -> str:
    return (
        f"<article class=card><h3>{escape(item.source)}</h3><dl>{''.join(map(_line, item.lines))}</dl>"
        f"<div class=clips>{''.join(map(_clip, item.clips))}</div></article>"
    )


def _line(line: Line) -> str:
    mark = "" if line.right is None else "<b class=ok>ok</b>" if line.right else "<b class=wrong>wrong</b>"
    note = f"<small>{escape(line.note)}</small>" if line.note else ""
    return f"<dt>{escape(line.name)}</dt><dd>{escape(one_row(line.text)) or '–'}{mark}{note}</dd>"


def _clip(clip: Clip) -> str:
    """`preload=none`: phones keep only so many players alive."""
    if not clip.seconds:
        return f"<figure><figcaption>{escape(clip.name)} · nothing was said</figcaption></figure>"
    picture, sound = _data("image/webp", clip.picture), _data("audio/mpeg", clip.sound)
    return (
        f"<figure><figcaption>{escape(clip.name)} · {clip.seconds:.1f} s</figcaption>"
        f"<img alt='' width={WIDTH} height={HEIGHT} src='{picture}'>"
        f"<audio controls preload=none aria-label='{escape(clip.name)}' src='{sound}'></audio></figure>"
    )


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"
