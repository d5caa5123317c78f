"""Options that several commands take."""

import argparse
from typing import Any

from speechgpt.data.hub import named_path

DEFAULT_MODEL = "mini"


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"speechgpt {name}", description=description)


def add_playing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--play", metavar="COMMAND", help="also play each answer as it comes: its wav on COMMAND's input"
    )
    parser.add_argument(
        "--low-latency", action="store_true", help="first sound before all of its context, a little worse"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a line on standard output")


def add_model(parser: argparse.ArgumentParser, seed: bool = True) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME|DIR",
                        help="mini (default), a model or LLaMA folder, or a hub name")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    if seed:
        parser.add_argument("--seed", type=int, default=0, help="for models that sample (default 0)")


def add_hearings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hearings", type=int, metavar="N",
                        help="hear a recording N times, at other speeds: fewer mistakes; each time costs its "
                        "encoding, and a row in each step of the text (default: the model's)")  # fmt: skip


PARTS = {
    "lora": "adapter folder or hub name, merged into the language model",
    "encoder": "encoder, instead of the model's or where it has none",
    "codebook": "codebook, likewise",
    "vocoder": "vocoder, likewise",
}


def add_parts(parser: argparse.ArgumentParser) -> None:
    """For a --model that is a language model alone, such as the published ones."""
    for name, line in PARTS.items():
        parser.add_argument(f"--{name}", type=named_path, metavar="PATH", help=line)
    parser.add_argument("--layer", type=int, metavar="N", help="encoder layer (default: the codebook's)")


def given_parts(args: argparse.Namespace) -> dict[str, Any]:
    """What `find_model` takes besides the model."""
    return {name: getattr(args, name) for name in (*PARTS, "layer")}
