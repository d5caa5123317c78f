"""`speechgpt eval`: how well a model hears, speaks and answers, the vocoder's faults told from the model's.

Writes OUT/report.json and, from it, OUT/report.html. Every figure comes with its number of items, its
bootstrap interval, a floor (what costs nothing) and a ceiling (what the best input reaches). A figure that
lacks its data is listed with the reason.
"""

import argparse
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from speechgpt.command_options import add_hearings
from speechgpt.data.draws import draw_some
from speechgpt.data.files import read_json, write_json, write_text
from speechgpt.data.qa_file import read_questions
from speechgpt.data.rows import Utterance, read_manifest, read_units
from speechgpt.data.settings import load_settings
from speechgpt.data.text_normal import normalise
from speechgpt.judge import load_judge
from speechgpt.model_dir import find_model, load_generator
from speechgpt.report_page import render


@dataclass
class EvalConfig:
    """eval.yaml: how much of the held-out rows is scored, and who listens. 0 rows leaves a section out.

    `figures` are those of speechgpt/figures.py, by name, each with `rows` (at most), `corpora` and `goal`.
    """

    judge: str = "pocketsphinx"  # pocketsphinx | self (the model's own transcription)
    figures: dict = field(default_factory=dict)  # {"orders": {"rows": 100, "goal": 0.85}, ...}
    figures_split: str = "test"  # that the figures are measured on; `split` is for all below
    split: str = "dev"  # of the manifest, the unit rows and the questions
    corpora: list = field(default_factory=list)  # names of the corpora to score; empty: all
    asr_rows: int = 100
    tts_rows: int = 50
    resynthesis_rows: int = 50
    unit_rows: int = 200  # for the perplexity
    turn_rows: int = 100
    max_words: int = 30  # longer texts are left out
    seed: int = 0

    def __post_init__(self) -> None:
        from speechgpt.figures import read_figures

        read_figures(self.figures)

    @classmethod
    def load(cls, path: str | Path) -> "EvalConfig":
        return load_settings(cls, path)


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    config = EvalConfig.load(args.config) if args.config else EvalConfig()
    model_dir = find_model(args.model).hearing(args.hearings)
    stages = dict(_named(s) for s in args.stage)
    every = [(row, row.audio(path)) for path in args.manifest for row in read_manifest(path)]
    rows = _recordings(every, config, model_dir.config.max_question_seconds)
    units = [row for path in args.units for row in read_units(path)]
    questions = [q for path in args.qa for q in read_questions(path)]
    from speechgpt.figures import measure_figures, read_figures
    from speechgpt.held_out import HeldOut
    from speechgpt.pipeline import SpeechGPT

    started = time.time()
    model = SpeechGPT(model_dir, args.device, encoder=True, vocoder=True)
    judge = load_judge(config.judge, model.transcribe, model_dir.config.max_question_seconds)
    held = HeldOut(model, judge, every, questions, config.figures_split, config.seed)
    sections, missing, seconds = measure_figures(held, read_figures(config.figures))
    missing |= _absent(rows, config)
    sections += _speech_sections(model, judge, rows, config)
    sections += _turn_sections(model, judge, rows, questions, config)
    sections += _unit_sections(model, units, stages, args.unit_quality, config, args.device)
    if not sections:
        reasons = "".join(f"; {name}: {why}" for name, why in missing.items())
        raise ValueError(
            f"nothing to score: no rows of split {config.split!r} with a text, no unit rows, no questions"
            + reasons
        )
    if missing:
        sections.append(
            {"title": "Not measured", "text": "Figures that lack their data, and why.", "values": missing}
        )
    report = {
        "title": f"{model_dir.config.name}: evaluation",
        "facts": {
            "model": model_dir.config.name,
            "hearings": model.generator.decoding.hearings_for("turn"),
            "hearings of transcriptions": model.generator.decoding.hearings_for("asr"),
            "judge": judge.name,
            "split": config.split,
            "figures on": config.figures_split,
            "seed": config.seed,
        },
        "config": asdict(config),
        "seconds": round(time.time() - started, 1),
        "figure_seconds": seconds,
        "not_measured": missing,
        "sections": sections,
    }
    write_text(args.out / "report.html", render(report))
    write_json(args.out / "report.json", report)
    for line in summary(report):
        print(line)
    print(f"{args.out}/report.json, {args.out}/report.html")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="speechgpt eval", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--config", type=Path, help="eval.yaml")
    add("--model", default="mini", metavar="mini|DIR", help="default: mini")
    add_hearings(parser)
    add(
        "--manifest", type=Path, nargs="*", default=[], help="recordings with texts, for hearing and speaking"
    )
    add("--units", type=Path, nargs="*", default=[], help="unit rows, for the perplexity")
    add("--qa", type=Path, nargs="*", default=[], help="question-answer files, for the turns")
    add("--stage", nargs="*", default=[], metavar="NAME=DIR", help="language models after each stage")
    add("--unit-quality", type=Path, help="what `speechgpt unit-quality` wrote")
    add("--out", type=Path, required=True, help="folder for report.json and report.html")
    add("--device", default="auto", help="auto (default), cpu or cuda")
    return parser


def _named(stage: str) -> tuple[str, Path]:
    name, found, folder = stage.partition("=")
    if not found or not name:
        raise ValueError(f"--stage {stage}: expected NAME=DIR, such as stage1=work/toy/stage1")
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"--stage {stage}: no such folder")
    return name, Path(folder)


def _recordings(
    every: list[tuple[Utterance, Path]], config: EvalConfig, longest: float
) -> list[tuple[Utterance, Path]]:
    """The rows of the split with their audio files, questions' and answers' recordings included."""
    return [
        (row, path)
        for row, path in every
        if row.split == config.split
        and row.seconds <= longest
        and (not config.corpora or row.corpus in config.corpora)
    ]


def _absent(rows: list[tuple[Utterance, Path]], config: EvalConfig) -> dict[str, str]:
    """The corpora that eval.yaml names for the sections, and of which there is nothing to score."""
    there = {row.corpus for row, _ in rows}
    why = f"the manifests have no rows of it in split {config.split!r}"
    return {f"corpus {name}": why for name in config.corpora if name not in there}


def _speech_sections(
    model, judge, rows: list[tuple[Utterance, Path]], config: EvalConfig
) -> list[dict[str, Any]]:
    from speechgpt import scores

    texts = [(row, path) for row, path in rows if 0 < len(normalise(row.text).split()) <= config.max_words]
    jobs = [
        (scores.hearing, config.asr_rows),
        (scores.speaking, config.tts_rows),
        (scores.resynthesis, config.resynthesis_rows),
    ]
    drawn = [(score, draw_some(texts, count, config.seed)) for score, count in jobs]
    return [score(model, some, judge, config.seed) for score, some in drawn if some]


def _turn_sections(model, judge, rows, questions, config: EvalConfig) -> list[dict[str, Any]]:
    from speechgpt import scores

    # A question without a split of its own goes with its recordings, of which only this split's are here.
    named = {row.id.rpartition(".q")[0] or row.id for row, _ in rows}
    held = [
        q for q in questions if q.split == config.split or (not q.split and (q.question_id or q.id) in named)
    ]
    if not held or not config.turn_rows:
        return []
    return [scores.turns(model, held, rows, judge, config.turn_rows, config.seed)]


def _unit_sections(model, units, stages, quality: Path | None, config: EvalConfig, device: str) -> list[dict]:
    from speechgpt import scores

    sections = []
    rows = draw_some(
        [row for row in units if row.split == config.split and row.units], config.unit_rows, config.seed
    )
    if rows:
        loaders: dict[str, Any] = {
            name: partial(load_generator, folder, device=device)
            for name, folder in stages.items()
            if not (folder / "adapter_config.json").exists()  # merged, it is the finished model
        }
        loaders["the last stage (the model itself)"] = lambda: model.generator
        train = [row for row in units if row.split == "train"]
        sections.append(scores.unit_perplexity(loaders, rows, train, config.seed))
    done = {name: read_json(d / "done.json") for name, d in stages.items() if (d / "done.json").is_file()}
    values = {
        f"{name}: {key}": value for name, found in done.items() for key, value in plain_values(found).items()
    }
    if values:
        sections.append(
            {"title": "Training", "text": "What each stage wrote when it ended.", "values": values}
        )
    if quality is not None:
        found = plain_values(read_json(quality))
        sections.append({"title": "Unit quality", "text": "Units against phones.", "values": found})
    return sections


def plain_values(found: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The numbers of a nested mapping, by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in found.items():
        if isinstance(value, dict):
            flat |= plain_values(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = value
    return flat


def summary(report: dict[str, Any]) -> list[str]:
    """For the terminal: sections, a line for each of their measures, and what could not be measured."""
    from speechgpt.report_page import figure, reached

    lines = []
    for section in report["sections"]:
        if section.get("measures"):
            lines.append(section["title"])
        for row in section.get("measures", []):
            value, low, high = (figure(row[k], row["unit"]) for k in ("value", "low", "high"))
            anchors = [
                f"{w} {figure(row[w], row['unit'])}" for w in ("floor", "ceiling") if row[w] is not None
            ]
            anchors += [f"{name} {figure(v, row['unit'])}" for name, v in row["beside"].items()]
            if row["goal"] is not None:
                met = "met" if reached(row) else "missed"
                anchors.append(f"goal {figure(row['goal'], row['unit'])} {met}")
            interval = f"{value:>8}  [{low}, {high}]"
            lines.append(f"  {row['name']:<44} {interval}  n={row['n']}  {', '.join(anchors)}")
    return lines + [f"{name}: not measured: {why}" for name, why in report["not_measured"].items()]
