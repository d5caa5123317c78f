"""The `speechgpt` command: a table from subcommand to function, and the place where errors become exit codes.

Nothing heavy is imported before the subcommand is known. Exit codes: 0 done, 2 bad input (one line on
standard error for each bad file), 130 interrupted, 141 the reader of standard output went away.
"""

import difflib
import errno
import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module

from speechgpt import __version__

OK, BAD_INPUT, INTERRUPTED, PIPE_CLOSED = 0, 2, 130, 141

# Group -> subcommand -> ("module:function", one line for --help). Functions take argv and return a code.
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Talk": {
        "talk": ("speechgpt.commands:talk", "answer spoken (or typed) questions with speech"),
        "chat": ("speechgpt.chat:main", "hold a conversation of several turns in a terminal"),
        "transcribe": ("speechgpt.commands:transcribe", "write down what recordings say"),
        "speak": ("speechgpt.commands:speak", "say a text"),
        "encode": ("speechgpt.unit_commands:encode", "recordings to units, <sosp><12><7>...<eosp> a line"),
        "decode": ("speechgpt.unit_commands:decode", "units to a recording"),
        "demo": ("speechgpt.demo:main", "answer the question that ships with the package"),
        "listen": ("speechgpt.listen:main", "one HTML page of held-out recordings, resyntheses and answers"),
    },
    "Data": {
        "manifest": ("speechgpt.data.readers:main", "read a corpus into a manifest"),
        "split": ("speechgpt.data.splits:main", "split a manifest so that no speaker or text is shared"),
        "merge": ("speechgpt.data.merge:main", "join manifests or unit rows"),
        "folds": (
            "speechgpt.data.folds:main",
            "manifests of what each fold's encoder hears, and does not hear",
        ),
        "synthesize": ("speechgpt.data.synthesize:main", "speak sentences with espeak-ng and flite"),
        "align": ("speechgpt.data.align:main", "add phone alignments to a manifest"),
        "toy-corpus": ("speechgpt.data.toy:main", "make the toy corpus with numpy"),
        "mini-corpus": ("speechgpt.data.mini:main", "make the mini preset's sentences and questions"),
        "qa-sentences": ("speechgpt.data.qa_sentences:main", "any question-answer file's sentences to speak"),
        "instruct": ("speechgpt.data.instruct:main", "unit rows to instruction rows (stage 2)"),
        "chain": ("speechgpt.data.chain:main", "question-answer rows to chain-of-modality rows (stage 3)"),
        "published": ("speechgpt.data.published:main", "rows to and from the published JSON lines"),
        "lint-data": (
            "speechgpt.lint_data:main",
            "faults of row files: drift, cut answers, injected units, leaks",
        ),
    },
    "Units": {
        "perturb": (
            "speechgpt.units.perturb:main",
            "copies of recordings at other speeds, in noise, over a telephone",
        ),
        "unit-selection": ("speechgpt.units.unit_selection:main", "texts in units cut out of recordings"),
        "pretrain": ("speechgpt.units.pretrain:main", "train a HuBERT encoder by masked prediction"),
        "codebook": ("speechgpt.units.codebook_fitting:main", "cluster features into a codebook"),
        "units": ("speechgpt.units.encode:main", "encode a manifest to unit rows, resumable"),
        "unit-quality": ("speechgpt.units.quality:main", "purity, PNMI, bitrate and used share of units"),
    },
    "Vocoder": {
        "vocoder": ("speechgpt.vocoder.train:main", "train the unit HiFi-GAN"),
    },
    "Language model": {
        "tokenizer": ("speechgpt.text_tokenizer:main", "train or take over the text tokenizer"),
        "init-lm": ("speechgpt.model:main", "make or extend the LLaMA checkpoint"),
        "train": ("speechgpt.train:main", "run a training stage (1, 2 or 3)"),
        "merge-lora": ("speechgpt.model:merge_main", "merge an adapter into an ordinary checkpoint"),
        "average": ("speechgpt.average:main", "a model with the mean weights of others"),
        "convert": ("speechgpt.convert:main", "published files (fairseq, joblib, LLaMA) to a folder of ours"),
        "fetch": ("speechgpt.data.hub:main", "a hub name's folder in the local cache, fetched if need be"),
        "assemble": ("speechgpt.assemble:main", "join encoder, codebook, LLaMA and vocoder into a model"),
        "eval": ("speechgpt.evaluate:main", "measure a model: report.json and report.html"),
        "bench": ("speechgpt.bench:main", "measure speeds beside the released way, in one run"),
    },
}

# Libraries' chatter would mix with the one line that an error gets. A user's own setting wins.
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code. SPEECHGPT_DEBUG=1 shows the traceback of an error."""
    argv = sys.argv[1:] if argv is None else argv
    table = {name: target for group in COMMANDS.values() for name, (target, _) in group.items()}
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview(), file=sys.stdout if argv else sys.stderr)
        return OK if argv else BAD_INPUT
    if argv[0] == "--version":
        print(f"speechgpt {__version__}")
        return OK
    name = argv[0]
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean `speechgpt {near[0]}`?" if near else "`speechgpt --help` lists the commands"
        return complain(f"speechgpt: unknown command {name!r}; {hint}")
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    return _run(name, table[name], argv[1:])


def overview() -> str:
    """What `speechgpt --help` prints."""
    lines = ["usage: speechgpt COMMAND [options]     (speechgpt COMMAND --help explains one)"]
    for group, commands in COMMANDS.items():
        lines += ["", f"{group}:"]
        lines += [f"  {name:<13}{line}" for name, (_, line) in commands.items()]
    return "\n".join(lines)


def _run(name: str, target: str, argv: list[str]) -> int:
    try:
        code = _load(target)(argv)
        sys.stdout.flush()
        return code or OK
    except BrokenPipeError:
        _drop_stdout()
        return PIPE_CLOSED
    except KeyboardInterrupt:
        print(f"\nspeechgpt {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, MemoryError, ImportError) as error:
        if os.environ.get("SPEECHGPT_DEBUG"):
            raise
        _drop_stdout()
        return complain(f"speechgpt {name}: {one_line(error)}")


def _load(target: str) -> Callable[[list[str]], int]:
    module, function = target.split(":")
    return getattr(import_module(module), function)


def one_line(error: BaseException) -> str:
    """The error's message without line breaks; operating system errors name their file first."""
    if isinstance(error, OSError) and error.errno is not None:
        reason = (
            os.strerror(error.errno).lower() if error.errno != errno.ENOSPC else "no space left on the disk"
        )
        return f"{error.filename}: {reason}" if error.filename else reason
    if isinstance(error, ModuleNotFoundError):
        return f"the Python package {error.name} is missing; `make setup` installs everything"
    if isinstance(error, MemoryError):
        return "out of memory"
    return " ".join(str(error).split()) or type(error).__name__


def complain(message: str) -> int:
    """Writes one line to standard error (whose reader may be gone); returns the exit code for bad input."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        pass  # there is nobody left to tell
    return BAD_INPUT


def _drop_stdout() -> None:
    """Gives up what could not be written, so that the interpreter does not complain again when it exits."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
