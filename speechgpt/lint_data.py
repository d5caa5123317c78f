"""`speechgpt lint-data`: what is wrong with row files, a line a finding; a model's tokens if given."""

import argparse
import json
import time
from pathlib import Path

from speechgpt.cli import BAD_INPUT, OK
from speechgpt.data.dialogue_rows import CHAIN_KINDS, ChainRow, InstructRow
from speechgpt.data.hub import LLAMA, TOKENIZER, model_folder
from speechgpt.data.lint import KINDS, Linter, LintOptions
from speechgpt.data.lint_rows import MARKERS, Found
from speechgpt.data.published import PREFIX, parse
from speechgpt.prompts import PromptFormat
from speechgpt.vocabulary import Vocabulary, holds_vocabulary


class VocabularyTokens:
    """Lengths of rows as a model of this package, or a published one, is trained on them."""

    def __init__(self, vocabulary: Vocabulary, prefix: str, limit: int):
        self.vocabulary, self.limit = vocabulary, limit
        self.format = PromptFormat(vocabulary, prefix)
        self.upstream = vocabulary.profile == "upstream"
        # Every stretch between two tokens is encoded on its own, so the prefix counts once and for all.
        self._before = len(vocabulary.encode_template(f"{PREFIX}[Human]")) if self.upstream else 0

    def __call__(self, found: Found) -> tuple[int, int]:
        """(tokens before the answer, in all); the first is only counted where the second passes the limit."""
        if self.upstream and found.plain:
            tokens = self._published(found, len(found.plain)) + 1  # </s>
            return (self._published(found, found.answer_at), tokens) if tokens > self.limit else (0, tokens)
        row = found.row
        if row is None:
            kind = ChainRow if found.kind in CHAIN_KINDS else InstructRow
            row = parse(found.plain.removeprefix(PREFIX), kind, "row")
        rendered = self.format.render(row)
        return rendered.prompt_length, len(rendered.ids)

    def _published(self, found: Found, end: int) -> int:
        text, units = found.plain[len(PREFIX) : end], 0
        for _, spelled in found.units:  # a token each, counted without looking them up
            if spelled in text:
                text, units = text.replace(spelled, "<sosp><eosp>", 1), units + spelled.count("<") - 2
        return self._before + len(self.vocabulary.encode_template(text)) + units  # [Human] stands for <s>

    def markers(self) -> dict[str, int]:
        """Markers that are not one token -> how many they are."""
        return {name: len(ids) for name, ids in self.vocabulary.markers().items() if len(ids) != 1}


class PlainTokens:
    """Lengths with a text tokenizer that knows no units, or was extended by somebody else."""

    def __init__(self, folder: Path, limit: int):
        self.limit = limit
        if (folder / "tokenizer.json").is_file():
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        else:
            import sentencepiece

            self._encode = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model")).encode

    def __call__(self, found: Found) -> tuple[int, int]:
        plain, at = found.plain, found.answer_at
        if not plain:
            from speechgpt.data.published import plain_text

            plain = PREFIX + plain_text(found.row)
            at = plain.index("[SpeechGPT]: ", len(PREFIX)) + len("[SpeechGPT]: ")
        tokens = len(self._encode(plain)) + 2  # <s>, </s>
        return (len(self._encode(plain[:at])) + 1, tokens) if tokens > self.limit else (0, tokens)

    def markers(self) -> dict[str, int]:
        counts = {name: len(self._encode(name)) for name in MARKERS}
        return {name: count for name, count in counts.items() if count != 1}


def tokens_of(model: str | Path, limit: int) -> VocabularyTokens | PlainTokens:
    """For a model directory, a language model's folder, or that of a text tokenizer; or a hub name."""
    from speechgpt.model_dir import MODEL_FILE, MODELS, find_model, known_models

    folder = MODELS / str(model) if str(model) in known_models() else model_folder(model, LLAMA, TOKENIZER)
    if (folder / MODEL_FILE).is_file():
        found = find_model(folder)
        return VocabularyTokens(Vocabulary.load(found.llm), found.config.prefix, limit)
    if holds_vocabulary(folder):
        vocabulary = Vocabulary.load(folder)
        return VocabularyTokens(vocabulary, PREFIX if vocabulary.profile == "upstream" else "", limit)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise FileNotFoundError(f"{model}: holds no vocabulary and no tokenizer; expected a model's folder")
    return PlainTokens(folder, limit)


def options_of(args: argparse.Namespace) -> LintOptions:
    if args.units < 0 or args.max_length < 0:
        raise ValueError(f"--units {args.units}, --max-length {args.max_length}: expected numbers above 0")
    options = LintOptions(args.units, args.max_length, ignore=frozenset(args.ignore))
    if args.model:
        tokens = tokens_of(args.model, args.max_length)
        options.measure, options.markers, options.model = tokens, tokens.markers(), args.model
        if not options.num_units and isinstance(tokens, VocabularyTokens):
            options.num_units = tokens.vocabulary.num_units
    return options


def main(argv: list[str]) -> int:
    kinds = "".join(f"\n  {kind:<12}{what}" for kind, what in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="speechgpt lint-data",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Reports faults of row files: published JSON lines, unit lines, texts, our own rows."
        "\nA row's split is its own; else train, dev, valid or test in the file's name; else the file."
        "\nExit code 0: nothing found; 2: findings, or a file that cannot be opened.",
        epilog=f"kinds of findings:{kinds}",
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--model", metavar="NAME|DIR", help="whose tokens and units count")
    parser.add_argument(
        "--units", type=int, default=0, metavar="K", help="size of the codebook (default: the model's)"
    )
    parser.add_argument(
        "--max-length", type=int, default=0, metavar="N",
        help="tokens that training keeps of a row; without --model one a unit, marker and word, the fewest "
        "there can be",
    )  # fmt: skip
    parser.add_argument("--ignore", nargs="+", choices=KINDS, default=[], metavar="KIND")
    parser.add_argument(
        "--json", action="store_true", help="findings, and at last the summary, as JSON lines"
    )
    args = parser.parse_args(argv)
    started, linter = time.perf_counter(), Linter(options_of(args))
    for finding in linter.run(args.files):
        print(json.dumps(vars(finding)) if args.json else finding)
    seconds = time.perf_counter() - started
    summary = {
        "files": len(args.files),
        "rows": sum(linter.rows.values()),
        "kinds": dict(linter.rows),
        "findings": {kind: linter.findings[kind] for kind in KINDS if linter.findings[kind]},
        "seconds": round(seconds, 2),
        "rows_per_second": round(sum(linter.rows.values()) / max(seconds, 1e-9)),
    }
    print(json.dumps({"summary": summary}) if args.json else table(summary))
    return BAD_INPUT if linter.findings else OK


def table(summary: dict) -> str:
    """The summary as the last lines of the report."""
    rows = ", ".join(f"{count} {kind}" for kind, count in sorted(summary["kinds"].items())) or "none"
    lines = [f"{kind:<12}{count:>9}  {KINDS[kind]}" for kind, count in summary["findings"].items()]
    total = sum(summary["findings"].values())
    lines.append(
        f"{total or 'no'} finding{'s' * (total != 1)} in {summary['rows']} rows of {summary['files']} files "
        f"({rows}); {summary['rows_per_second']} rows/s"
    )
    return "\n".join(lines)
