"""Rows to token rows: renders, rejects those that do not fit, mixes, repeats and packs.

The result is kept in the run's folder under a key made of the rows, the vocabulary, the settings and the code
that renders, so that it is never reused for anything else; it serves resuming and the other processes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

import speechgpt.batches
import speechgpt.packs
import speechgpt.prompts
import speechgpt.row_files
import speechgpt.upstream_vocabulary
import speechgpt.vocabulary
from speechgpt.batches import TokenRows, pack
from speechgpt.data.dialogue_rows import CHAIN_KINDS
from speechgpt.data.draws import draw
from speechgpt.data.files import read_json, write_json, write_jsonl
from speechgpt.packs import cut_rows
from speechgpt.prompts import PromptFormat
from speechgpt.row_files import KINDS, Line, read_lines
from speechgpt.stages import StageConfig, fingerprint
from speechgpt.vocabulary import Vocabulary

CHUNK = 1000  # rows that a worker process renders at a time
WORTH_WORKERS = 20_000  # rows: under this, starting processes costs more than it saves
MAX_WORKERS = 16


class Renderer:
    """Renders lines to (ids, loss mask), with the limits of a stage."""

    def __init__(self, vocabulary: Vocabulary, config: StageConfig):
        self.vocabulary = vocabulary
        self.format = PromptFormat(vocabulary, config.prefix)
        self.limit = None if config.stage == 1 else config.max_length  # stage 1 packs, and loses nothing

    def render(self, line: Line) -> tuple[np.ndarray, np.ndarray]:
        """ids (L,) int32 and mask (L,) bool. Raises ValueError for a row that cannot be trained on."""
        if line.kind == "text":
            vocabulary = self.vocabulary
            ids = [vocabulary.bos_id, *vocabulary.encode_text(line.row), vocabulary.eos_id]
            mask = [False] + [True] * (len(ids) - 1)
        else:
            rendered = self._rendered(line)
            ids, mask = rendered.ids, rendered.mask
        if self.limit is not None and len(ids) > self.limit:
            raise ValueError(f"{len(ids)} tokens; max_length is {self.limit}")
        return np.array(ids, dtype=np.int32), np.array(mask, dtype=bool)

    def _rendered(self, line: Line):
        if line.kind == "units":
            return self.format.render_units(line.row)
        if line.kind in CHAIN_KINDS:
            return self.format.render_chain(line.row)
        return self.format.render_instruct(line.row)

    def chunk(self, lines: list[Line]) -> list[tuple]:
        """(split, kind, ids, mask, None) a line, or (split, kind, id, None, reason) for a rejected one."""
        found = []
        for line in lines:
            try:
                found.append((line.split, line.kind, *self.render(line), None))
            except ValueError as error:
                found.append((line.split, line.kind, line.id, None, str(error)))
        return found


_renderer: Renderer | None = None  # of a worker process


def _start_worker(renderer: Renderer) -> None:
    global _renderer
    _renderer = renderer


def _work(lines: list[Line]) -> list[tuple]:
    return _renderer.chunk(lines)


def render_all(lines: Iterable[Line], renderer: Renderer, processes: int) -> Iterator[tuple]:
    """The results of `Renderer.chunk` for all lines, in order; in worker processes if they are many."""
    lines = iter(lines)
    head = list(islice(lines, WORTH_WORKERS))
    if processes < 2 or len(head) < WORTH_WORKERS:
        yield from renderer.chunk(head)
        yield from renderer.chunk(list(lines))
        return
    with get_context("fork").Pool(processes, _start_worker, (renderer,)) as pool:
        for found in pool.imap(_work, _chunks(head, lines)):
            yield from found


def _chunks(head: list[Line], rest: Iterator[Line]) -> Iterator[list[Line]]:
    for start in range(0, len(head), CHUNK):
        yield head[start : start + CHUNK]
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


@dataclass
class StageRows:
    """What a stage trains on."""

    train: TokenRows
    dev: TokenRows | None
    counts: dict  # rows of each kind, tokens, rejected: for done.json


def stage_rows(
    config: StageConfig, vocabulary: Vocabulary, data: list[Path], mix: list[Path], dev: list[Path], out: Path
) -> StageRows:
    """Renders, or loads what this very input was rendered to. Rejects go to `out`/rejects.jsonl."""
    folder = out / "rendered" / _key(config, vocabulary, data, mix, dev)
    if not (folder / "counts.json").is_file():
        rows = _render(config, vocabulary, data, mix, dev, out)
        shutil.rmtree(out / "rendered", ignore_errors=True)  # another key's rows, or half-written ones
        rows.train.save(folder / "train")
        if rows.dev is not None:
            rows.dev.save(folder / "dev")
        write_json(folder / "counts.json", rows.counts)  # last: it says that the rest is whole
    dev_rows = TokenRows.load(folder / "dev") if (folder / "dev").is_dir() else None
    return StageRows(TokenRows.load(folder / "train"), dev_rows, read_json(folder / "counts.json"))


def _key(config: StageConfig, vocabulary: Vocabulary, *files: list[Path]) -> str:
    """Hash over everything that decides the rendered rows, the code included."""
    modules = (
        speechgpt.row_files,
        speechgpt.prompts,
        speechgpt.vocabulary,
        speechgpt.upstream_vocabulary,
        speechgpt.batches,
        speechgpt.packs,
    )
    code = [Path(module.__file__) for module in modules]
    names = "stage max_length packed prefix mix repeat dev_rows max_bad seed".split()
    settings = {name: getattr(config, name) for name in names}
    parts = {
        "files": [[fingerprint(path) for path in group] for group in files],
        "code": [fingerprint(path) for path in (*code, Path(__file__))],
        "vocabulary": [vocabulary.describe(), vocabulary.encode_text("The text pieces, too: 0123!")],
        "settings": settings,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _render(config, vocabulary, data: list[Path], mix: list[Path], dev: list[Path], out: Path) -> StageRows:
    renderer = Renderer(vocabulary, config)
    rejects: list[dict] = []
    train, own_dev = _collect(data, renderer, rejects, "train rows")
    mixed, mixed_dev = _collect(mix, renderer, rejects, "mixed rows")
    given, given_dev = _collect(dev, renderer, rejects, "dev rows")
    _judge_rejects(rejects, config, out)
    if not train:
        raise ValueError(f"{', '.join(map(str, data))}: no row is left to train on")
    train = _repeat(TokenRows.join(train + _draw_mix(train, mixed, config)), config)
    dev_rows = [*given, *given_dev] if dev else own_dev + mixed_dev
    order = np.random.default_rng(config.seed).permutation(len(dev_rows))[: config.dev_rows]
    counts = {
        "rows": train.count(),
        "rejected": len(rejects),
        "tokens": int(train.offsets[-1]),
        "supervised_tokens": int(train.mask.sum()),
        "longest": int(train.lengths.max()),
    }
    if config.stage == 1:
        counts["cut_rows"] = int((train.lengths > config.max_length).sum())
        train = _lay_out(train, config)
        counts["documents" if config.packed else "blocks"] = len(train)
    dev_set = TokenRows.join([dev_rows[i] for i in sorted(order)]) if dev_rows else None
    if dev_set is not None and config.stage == 1:
        dev_set = _lay_out(dev_set, config)
    counts["dev_rows"] = min(len(dev_rows), config.dev_rows)
    return StageRows(train, dev_set, counts)


def _lay_out(rows: TokenRows, config: StageConfig) -> TokenRows:
    """Stage 1: rows joined into blocks; with `packed` each stays alone, in pieces if it is longer."""
    return (cut_rows if config.packed else pack)(rows, config.max_length)


def _collect(paths: list[Path], renderer: Renderer, rejects: list[dict], name: str) -> tuple[list, list]:
    """(ids, mask, kind) of the rows of the train and of the dev split; test rows are left out."""
    found: dict[str, list] = {"train": [], "dev": [], "test": []}
    processes = min(MAX_WORKERS, os.cpu_count() or 1)
    for path in paths:
        results = render_all(read_lines(path), renderer, processes)
        shown = tqdm(results, f"{name} of {path.name}", disable=None, leave=False)
        for split, kind, ids, mask, reason in shown:
            if reason is None:
                found[split].append((ids, mask, kind))
            else:
                rejects.append({"file": str(path), "id": ids, "kind": kind, "reason": reason})
    return found["train"], found["dev"]


def _judge_rejects(rejects: list[dict], config: StageConfig, out: Path) -> None:
    path = out / "rejects.jsonl"
    if not rejects:
        path.unlink(missing_ok=True)
        return
    write_jsonl(path, rejects)
    if len(rejects) > config.max_bad:
        first = rejects[0]
        raise ValueError(
            f"{first['file']}: row {first['id']}: {first['reason']}; {len(rejects)} rejected rows in all, "
            f"max_bad allows {config.max_bad}; all are listed in {path}"
        )


def _draw_mix(train: list, mixed: list, config: StageConfig) -> list:
    """As many of the mixed rows as their share asks for, drawn from the seed."""
    if config.mix is None:
        return mixed
    wanted = round(len(train) * config.mix / (1 - config.mix))
    if wanted >= len(mixed):
        return mixed
    drawn = np.random.default_rng([config.seed, 1]).permutation(len(mixed))[:wanted]
    return [mixed[i] for i in sorted(drawn)]


def _repeat(rows: TokenRows, config: StageConfig) -> TokenRows:
    """Rows of each kind as often as `repeat` says; of a fraction, the seed draws which."""
    if not config.repeat:
        return rows
    if unknown := sorted(set(config.repeat) - set(KINDS)):
        raise ValueError(f"repeat names {', '.join(unknown)}; the kinds of rows are {', '.join(KINDS)}")
    times = np.array([float(config.repeat.get(kind, 1)) for kind in rows.kinds])[rows.kind]  # rows
    chance = np.array([draw(config.seed, "repeat", str(i)) for i in range(len(rows))])
    whole = np.floor(times).astype(int) + (chance < times % 1)
    return rows.select(np.repeat(np.arange(len(rows)), whole))
