"""report.json as one static HTML page: no scripts, no fonts, nothing fetched."""

from collections.abc import Mapping
from html import escape
from typing import Any

STYLE = """
:root{--ink:#1c2430;--soft:#5c6878;--line:#dfe4ea;--paper:#fbfcfd;--card:#fff;--accent:#0b6e6e;--band:#cfe6e3}
@media (prefers-color-scheme:dark){:root{--ink:#e6ebf0;--soft:#9aa7b5;--line:#303a46;--paper:#12171d;
--card:#1a2129;--accent:#57c2b8;--band:#234b49}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:76rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.7rem;margin:0 0 .3rem}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
p{max-width:46rem}.soft{color:var(--soft)}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.55rem .8rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border-bottom:0}
th{font-size:.78rem;text-transform:uppercase;letter-spacing:.04em;color:var(--soft)}
td.number{white-space:nowrap}td.value{font-weight:650;color:var(--accent)}small{color:var(--soft);display:block;white-space:normal}
.scale{position:relative;height:.55rem;min-width:7rem;background:var(--line);border-radius:4px;margin-top:.5rem}
.scale i{position:absolute;top:0;bottom:0;background:var(--band);border-radius:4px;min-width:3px}
.scale b{position:absolute;top:-.15rem;bottom:-.15rem;width:3px;background:var(--accent);border-radius:2px}
.samples td{font-size:.93rem}.wrong{color:#b3412e}
"""


def render(report: dict[str, Any]) -> str:
    """The whole page. `report` is what report.json holds."""
    sections = [f"<section><h2>{escape(s['title'])}</h2>{_section(s)}</section>" for s in report["sections"]]
    intro = (
        "<p>Every figure stands with its number of items, its 95&nbsp;% bootstrap interval (whole items "
        "resampled; it has no width where every item is right, or none), what costs nothing (floor) and what "
        "the best input reaches (ceiling).</p>"
    )
    return document(report["title"], report["facts"], intro + "".join(sections))


def document(title: str, facts: Mapping[str, Any], body: str, style: str = "") -> str:
    """A page of this project: `body` is HTML, `style` what it needs beside STYLE."""
    listed = " · ".join(f"{escape(k)} {escape(str(v))}" for k, v in facts.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body><main>"
        f"<h1>{escape(title)}</h1><p class=soft>{listed}</p>{body}</main></body></html>\n"
    )


def _section(section: dict[str, Any]) -> str:
    parts = [f"<p>{escape(section['text'])}</p>"] if section.get("text") else []
    if section.get("measures"):
        parts.append(_measures(section["measures"]))
    if section.get("values"):
        parts.append(_values(section["values"]))
    if section.get("samples"):
        parts.append(_samples(section["samples"]))
    return "".join(parts)


def _measures(rows: list[dict[str, Any]]) -> str:
    columns = ("Measure", "Value", "95 % interval", "n", "Floor", "Ceiling", "Beside", "Goal")
    head = "<tr>" + "".join(f"<th>{name}</th>" for name in columns) + "</tr>"
    return f"<div class=card><table>{head}{''.join(_measure(row) for row in rows)}</table></div>"


def _measure(row: dict[str, Any]) -> str:
    arrow = "lower is better" if row["better"] == "lower" else "higher is better"
    note = f"<small>{escape(row['note'])}</small>" if row["note"] else ""
    interval = f"{figure(row['low'], row['unit'])} to {figure(row['high'], row['unit'])}"
    return (
        f"<tr><td>{escape(row['name'])}<small>{arrow}</small>{note}</td>"
        f"<td class='number value'>{figure(row['value'], row['unit'])}</td>"
        f"<td class=number>{interval}{_scale(row)}</td><td class=number>{row['n']}</td>"
        f"<td class=number>{_anchor(row, 'floor')}</td><td class=number>{_anchor(row, 'ceiling')}</td>"
        f"<td>{_beside(row)}</td><td class=number>{_goal(row)}</td></tr>"
    )


def _scale(row: dict[str, Any]) -> str:
    """A bar from 0 to 100 % with the interval as a band and the value as a mark; plain numbers have none."""
    if row["unit"] != "%":
        return ""
    low, value, high = (100 * min(max(row[k], 0.0), 1.0) for k in ("low", "value", "high"))
    return (
        f"<div class=scale><i style='left:{low:.1f}%;width:{high - low:.1f}%'></i>"
        f"<b style='left:calc({value:.1f}% - 1px)'></b></div>"
    )


def _anchor(row: dict[str, Any], which: str) -> str:
    if row[which] is None:
        return "–"
    return f"{figure(row[which], row['unit'])}<small>{escape(row[f'{which}_name'])}</small>"


def _beside(row: dict[str, Any]) -> str:
    lines = (f"{escape(name)} {figure(value, row['unit'])}" for name, value in row["beside"].items())
    return "<br>".join(lines) or "–"


def _goal(row: dict[str, Any]) -> str:
    if row["goal"] is None:
        return "–"
    missed = "" if reached(row) else " class=wrong"
    return f"<span{missed}>{figure(row['goal'], row['unit'])}</span>"


def reached(row: dict[str, Any]) -> bool:
    """Whether a measure with a goal is at it or past it."""
    if row["better"] == "lower":
        return row["value"] <= row["goal"]
    return row["value"] >= row["goal"]


def figure(value: float, unit: str) -> str:
    """0.125 with "%" to "12.5 %", seconds and megabytes with their unit; plain numbers with three digits."""
    if unit == "%":
        return f"{100 * value:.1f} %"
    if unit in ("s", "MB"):
        return f"{value:.2f} {unit}"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _values(values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td class=number>{escape(_plain(value))}</td></tr>"
        for name, value in values.items()
    )
    return f"<div class=card><table>{rows}</table></div>"


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _samples(samples: dict[str, Any]) -> str:
    """{"columns": [...], "rows": [[...], ...]}: a few items to look at."""
    head = "".join(f"<th>{escape(c)}</th>" for c in samples["columns"])
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(str(c))}</td>" for c in row) + "</tr>" for row in samples["rows"]
    )
    return (
        f"<div class=card style='margin-top:.8rem'><table class=samples><tr>{head}</tr>{rows}</table></div>"
    )
