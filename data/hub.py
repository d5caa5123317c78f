"""Models by name: a folder of one's own, or `owner/name` on the Hugging Face hub.

A name is looked up in the hub's local cache first (`models--owner--name/refs/main` says which of its
`snapshots/` to take), and only what is not there is asked for over the network, once, without retries, after
a line on standard error that says what and where. With HF_HUB_OFFLINE=1 nothing is asked for. Whoever has
the files may also put them where the error says.

What is spelled as a path of this machine is never asked for: a mistyped path would tell the hub how folders
are called here, and whoever owns that name there would supply the model.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from socket import gaierror

from speechgpt.data.files import read_json

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What files are called, and models are not; a version ("v1.5") is no suffix.
FILE_SUFFIXES = frozenset(
    ".bin .ckpt .flac .gguf .gz .joblib .json .jsonl .km .m4a .model .mp3 .npy .npz .ogg .onnx .opus "
    ".pickle .pkl .pt .pth .safetensors .tar .tsv .txt .wav .yaml .yml .zip".split()
)
BY_HAND = "main"  # the snapshot's name when somebody copied the files into the cache
SECONDS_TO_ANSWER = 10  # that the hub has, before it counts as unreachable


@dataclass(frozen=True)
class Wanted:
    """The files of a kind of model. Sharded weights are named by the `.index.json` beside them."""

    what: str  # "a LLaMA"
    needed: tuple[str, ...]  # files that must be there; "a or b": one of them
    weights: tuple[str, ...]  # of these one, in order of preference
    small: tuple[str, ...] = ("*.json", "*.model")  # patterns of everything else worth having

    def weight_files(self, folder: Path, weights: str) -> list[str]:
        """The file itself, or the shards that its index in `folder` names."""
        index = folder / f"{weights}.index.json"
        if not index.is_file():
            return [weights]
        shards = read_json(index)
        shards = shards.get("weight_map") if isinstance(shards, dict) else None
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise ValueError(f"{index}: has no weight_map; expected names of tensors and of their files")
        names = sorted(set(shards.values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise ValueError(f"{index}: names {outside[0]!r}; expected files in its own folder")
        return names

    def missing(self, folder: Path) -> list[str]:
        """What `folder` lacks; empty when it is whole."""
        lacks = [names for names in self.needed if not _holds(folder, names)]
        kinds = [self.weight_files(folder, weights) for weights in self.weights]
        gaps = [[name for name in files if not (folder / name).is_file()] for files in kinds]
        if gaps and all(gaps):
            begun = [g for g, files in zip(gaps, kinds, strict=True) if len(g) < len(files) or len(files) > 1]
            lacks += begun[0] if begun else [" or ".join(self.weights)]
        return lacks


def _holds(folder: Path, names: str) -> bool:
    return any((folder / name).is_file() for name in names.split(" or "))


LLAMA = Wanted(
    "a LLaMA",
    ("config.json", "tokenizer.model or tokenizer.json"),
    ("model.safetensors", "pytorch_model.bin"),
)
TOKENIZER = Wanted("a text tokenizer", ("tokenizer.model or tokenizer.json",), ())
ADAPTER = Wanted("a LoRA", ("adapter_config.json",), ("adapter_model.safetensors", "adapter_model.bin"))
ENCODER = Wanted(
    "an encoder",
    ("config.json", "preprocessor_config.json or encoder.json"),
    ("model.safetensors", "pytorch_model.bin"),
)


def is_hub_name(name: str | Path) -> bool:
    """Whether this can be a hub name: `owner/name`, no folder `owner` is here, and no file is called so."""
    if not HUB_NAME.fullmatch(str(name)):
        return False
    path = Path(name)
    return path.suffix.lower() not in FILE_SUFFIXES and not path.parent.exists()


def named_path(given: str | Path) -> Path:
    """A hub name or a path, of an option: `./a/b` and `a/b/`, which Path makes `a/b`, become absolute."""
    path = Path(given)
    return path.absolute() if is_hub_name(path) and not is_hub_name(given) else path


def model_folder(name: str | Path, *kinds: Wanted) -> Path:
    """The folder of a hub name that holds one of `kinds`; whatever can be no hub name is returned as it is.

    Raises FileNotFoundError that lists the missing files and says where to put them.
    """
    if not is_hub_name(name):
        return named_path(name)
    found = snapshot(str(name))
    if found and any(not kind.missing(found) for kind in kinds):
        return found
    from huggingface_hub import constants

    reason = "HF_HUB_OFFLINE is set"
    if not constants.is_offline_mode():
        reason = _download(str(name), kinds)
        found = snapshot(str(name))
        if found and any(not kind.missing(found) for kind in kinds):
            return found
    raise FileNotFoundError(_not_here(str(name), found, kinds, reason))


def snapshot(name: str) -> Path | None:
    """The cached snapshot of a hub name's main branch, whole or not; None without one."""
    cache = cache_folder(name)
    ref = cache / "refs" / "main"
    revision = ref.read_text(encoding="utf-8").strip() if ref.is_file() else BY_HAND
    folder = cache / "snapshots" / revision
    return folder if re.fullmatch(r"\w+", revision) and folder.is_dir() else None


def cache_folder(name: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def _not_here(name: str, found: Path | None, kinds: tuple[Wanted, ...], reason: str) -> str:
    target = found or cache_folder(name) / "snapshots" / BY_HAND
    begun = [kind for kind in kinds if any(_holds(target, names) for names in kind.needed)]
    lists = [", ".join(kind.missing(target)) for kind in begun or kinds]
    return (
        f"{name}: no such folder, and as a hub name neither cached nor to be fetched ({reason}); put these "
        f"files into {target}, or give a folder that has them: {'; or '.join(lists)}"
    )


def _download(name: str, kinds: tuple[Wanted, ...]) -> str:
    """Fetches what is missing into the cache, which it says first. Returns why it could not.

    File by file, since the hub's own whole-snapshot call waits for ever for a hub that accepts and is silent.
    """
    import httpx
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError

    what, cache = " or ".join(kind.what for kind in kinds), cache_folder(name)
    line = f"{name}: not here; fetching {what} from {constants.ENDPOINT} into {cache}"
    print(line, file=sys.stderr, flush=True)
    try:
        listed = HfApi().model_info(name, timeout=SECONDS_TO_ANSWER).siblings or []
        there = [found.rfilename for found in listed if "/" not in found.rfilename]
        for group in _in_order(name, kinds, there):
            for file in group:
                hf_hub_download(name, file, etag_timeout=SECONDS_TO_ANSWER)
    except RepositoryNotFoundError:
        return "the hub has no such model, or not for everybody"
    except (OSError, httpx.HTTPError) as error:
        if _is_of_files(error):
            return f"{error.filename or cache} cannot be written: {error.strerror}"
        cause = _innermost(error)
        if (answer := getattr(cause, "response", None)) is not None:
            return f"the hub answers {answer.status_code}"
        return f"the hub cannot be reached: {' '.join(str(cause).split()) or type(cause).__name__}"
    return "the hub has no such files"


def _in_order(name: str, kinds: tuple[Wanted, ...], there: list[str]) -> Iterator[list[str]]:
    """Files to fetch, one group after the other: what is small, then the first kind of weights there is."""
    patterns = {pattern for kind in kinds for pattern in kind.small}
    yield [file for file in there if any(fnmatch(file, pattern) for pattern in patterns)]
    for kind in kinds:
        found = snapshot(name)
        if found is None or not all(_holds(found, names) for names in kind.needed):
            continue
        for weights in kind.weights:
            files = kind.weight_files(found, weights)
            if set(files) <= set(there):
                yield files
                return


def _is_of_files(error: Exception) -> bool:
    """A full disk, say. What the network raises is wrapped, which leaves no errno, or a kind of its own."""
    import httpx

    network = (httpx.HTTPError, ConnectionError, TimeoutError, gaierror)
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, network)


def _innermost(error: BaseException) -> BaseException:
    """The first cause of an error: what the network said, not what became of it."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__
    return error


def main(argv: list[str]) -> int:
    """`speechgpt fetch`: prints the folder that a name stands for, fetched if need be."""
    import argparse

    kinds = {"llama": LLAMA, "lora": ADAPTER, "encoder": ENCODER, "tokenizer": TOKENIZER}
    parser = argparse.ArgumentParser(
        prog="speechgpt fetch",
        description="Look a hub name up in the local cache, fetch it if it is not there.",
    )
    parser.add_argument("name", metavar="OWNER/NAME")
    parser.add_argument("--kind", choices=kinds, default="llama", help="what it must hold (default: llama)")
    args = parser.parse_args(argv)
    found = model_folder(args.name, kinds[args.kind])
    if not found.exists():
        raise FileNotFoundError(f"{found}: no such folder, and taken for a path here; expected OWNER/NAME")
    print(found)
    return 0
