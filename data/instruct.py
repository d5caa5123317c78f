"""Unit rows with text to instruction rows (stage 2): recognise or speak, asked for in many wordings.

The direction and the wording of a row are drawn from the seed and the row's id alone, so that adding rows, or
putting them in another order, changes no other row.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from speechgpt.data.dialogue_rows import InstructRow, write_instruct
from speechgpt.data.draws import draw, matches, pick
from speechgpt.data.files import read_text
from speechgpt.data.published import INPUT, write_published, write_unit_lines
from speechgpt.data.qa_file import QuestionAnswer, read_questions
from speechgpt.data.rejects import Rejects
from speechgpt.data.rows import SPLITS, UnitRow, read_units
from speechgpt.data.settings import parse_with_settings

TASKS = Path(__file__).parent / "tasks"  # asr.txt and tts.txt: descriptions to edit or to replace


def read_descriptions(path: str | Path) -> list[str]:
    """One description a line; `#` and blank lines do not count. Raises ValueError naming `path:line`."""
    found: dict[str, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if not line.endswith("."):
            raise ValueError(f"{path}:{number}: {line!r} has no full stop at its end")
        if INPUT.strip() in line or re.search(r"[<>\[\]]", line):
            raise ValueError(f"{path}:{number}: {line!r} holds a part of the template or a bracket")
        if line in found:
            raise ValueError(f"{path}:{number}: the same description as in line {found[line]}")
        found[line] = number
    if not found:
        raise ValueError(f"{path}: no descriptions; expected one a line, each with a full stop")
    return list(found)


def build_rows(
    units: Iterable[UnitRow],
    descriptions: dict[str, list[str]],
    seed: int = 0,
    asr_share: float = 0.5,
    both: bool = False,
    tts_speakers: Sequence[str] = (),
    max_units: int = 0,
    rejects: Rejects | None = None,
    tts_exclude: Sequence[str] = (),
) -> Iterator[InstructRow]:
    """Yields a row (with `both`, two) for every unit row that has text; the others are for stage 1 alone.

    `descriptions` has the lists for "asr" and "tts"; `max_units` 0 means no limit. With `tts_speakers`, only
    what they say is spoken, so that the model has one voice; rows of all others are recognised. So are rows
    that a pattern of `tts_exclude` names, disturbed copies: nobody should learn to speak like them.
    """
    for row in units:
        if not row.text.strip():
            continue
        if reason := _unusable(row, max_units):
            if rejects is None:
                raise ValueError(f"row {row.id}: {reason}")
            rejects.add(row.id, reason)
            continue
        drawn = "asr" if draw(seed, "direction", row.id) < asr_share else "tts"
        kinds = ("asr", "tts") if both else (drawn,)
        if tts_speakers and row.speaker not in tts_speakers:
            kinds = ("asr",)
        if matches(f"{row.corpus}/{row.id}", tts_exclude):
            kinds = ("asr",)
        for kind in kinds:
            description = pick(descriptions[kind], seed, "description", kind, row.id)
            yield InstructRow(
                f"{row.id}.{kind}", kind, description, row.text.strip(), list(row.units), split=row.split
            )


def _unusable(row: UnitRow, max_units: int) -> str:
    if not row.units:
        return "no units"
    if max_units and len(row.units) > max_units:
        return f"{len(row.units)} units, more than {max_units}"
    return ""


def chat_rows(questions: Iterable[QuestionAnswer]) -> Iterator[InstructRow]:
    """Plain text chats: a question and its answer, no speech. What many voices ask is written once."""
    seen: set[tuple[str, str, str]] = set()
    for row in questions:
        split = row.split or "train"
        if (split, row.question, row.answer) in seen:
            continue
        seen.add((split, row.question, row.answer))
        yield InstructRow(f"{row.id}.chat", "chat", question=row.question, answer=row.answer, split=split)


def write_stage1(path: str | Path, units: Iterable[UnitRow], split: str = "train") -> int:
    """One `<sosp>...<eosp>` a line for every row of `split`, with text or without; returns the count."""
    return write_unit_lines(path, (row.units for row in units if row.split == split and row.units))


@dataclass
class InstructSettings:
    """instruct.yaml; the options of the same names come before it."""

    seed: int = 0
    asr_share: float = 0.5
    both: bool = False
    tts_speakers: list = field(default_factory=list)
    exclude: list = field(default_factory=list)
    tts_exclude: list = field(default_factory=list)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="speechgpt instruct", description="Unit rows to instruction rows (stage 2)."
    )
    add = parser.add_argument
    add("--units", type=Path, nargs="+", required=True, help="unit rows, one or several files")
    add("--out", type=Path, required=True, help="instruction rows, all splits in one file")
    add("--tasks-asr", type=Path, default=TASKS / "asr.txt", help="descriptions, one a line")
    add("--tasks-tts", type=Path, default=TASKS / "tts.txt", help="descriptions, one a line")
    add("--seed", type=int, default=0)
    add("--asr-share", type=float, default=0.5, help="share of pairs that become ASR (default 0.5)")
    add("--both", action="store_true", help="make both an ASR and a TTS row of every pair")
    add("--tts-speakers", nargs="+", default=[], help="TTS rows of these speakers alone (default: of all)")
    add("--exclude", nargs="+", default=[], help="patterns of CORPUS/ID of rows to leave out, e.g. 'words/*'")
    add("--tts-exclude", nargs="+", default=[], help="the same, of rows that are only recognised")
    add("--chat", type=Path, nargs="*", default=[], help="question-answer files that add text chats")
    add("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="write only these splits to OUT")
    add("--max-units", type=int, default=0, help="reject longer rows (default 0: no limit)")
    add("--max-bad", type=int, default=0, help="rejects to tolerate; they go to OUT's .rejects.jsonl")
    add("--stage1", type=Path, help="also write the train split's units as text, one <sosp>...<eosp> a line")
    add("--stage1-dev", type=Path, help="the same for the dev split")
    add("--published", type=Path, help="also write the train split as published JSON lines")
    args = parse_with_settings(parser, InstructSettings, argv)
    if not 0 <= args.asr_share <= 1:
        raise ValueError(f"--asr-share is {args.asr_share}; expected 0 to 1")
    return args


def main(argv: list[str]) -> int:
    args = parse_arguments(argv)
    units = [row for path in args.units for row in read_units(path)]
    units = [row for row in units if not matches(f"{row.corpus}/{row.id}", args.exclude)]
    if args.stage1:
        print(f"{args.stage1}: {write_stage1(args.stage1, units)} lines")
    if args.stage1_dev:
        print(f"{args.stage1_dev}: {write_stage1(args.stage1_dev, units, 'dev')} lines")
    descriptions = {"asr": read_descriptions(args.tasks_asr), "tts": read_descriptions(args.tasks_tts)}
    with Rejects.beside(args.out, args.max_bad) as rejects:
        rows = list(
            build_rows(
                units,
                descriptions,
                args.seed,
                args.asr_share,
                args.both,
                args.tts_speakers,
                args.max_units,
                rejects,
                args.tts_exclude,
            )
        )
        rows += [row for path in args.chat for row in chat_rows(read_questions(path))]
        rows = [row for row in rows if row.split in args.splits]
        _check_unique(rows)
        if not rows:
            files = ", ".join(map(str, args.units))
            raise ValueError(f"{files}: no row with text in {', '.join(args.splits)}")
        write_instruct(args.out, rows)
    if args.published:
        write_published(args.published, (row for row in rows if row.split == "train"))
    silent = sum(not row.text.strip() for row in units)
    if silent:
        print(f"{silent} rows have no text: they serve stage 1 alone", file=sys.stderr)
    counts = {kind: sum(row.kind == kind for row in rows) for kind in ("asr", "tts", "chat")}
    print(f"{args.out}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()) + str(rejects))
    return 0


def _check_unique(rows: list[InstructRow]) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise ValueError(f"id {row.id!r} appears twice; `speechgpt merge --prefix-ids` avoids that")
        seen.add(row.id)
