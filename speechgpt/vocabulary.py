"""One interface over text tokens, unit tokens and turn markers, with two profiles.

`native`: a base text tokenizer (tokenizer.json), then `<0>` ... `<K-1>`, then the markers, each one token.
Text is encoded by the base tokenizer alone, without its added tokens, so none ever yields a unit or a marker.
`upstream`: the vocabulary of the published checkpoints, in `speechgpt.upstream_vocabulary`.

The order is the published one (units, then markers), so a native vocabulary over LLaMA is the published one
and after it the three markers that were never added there: `<eoa>`, `[ta]`, `[ua]`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from speechgpt.data.files import read_json, write_json, write_text
from speechgpt.text_tokenizer import main, pieces, special_names, tokenizer_config, tokenizer_size

VOCABULARY_FILE = "speechgpt_vocab.json"
FORMAT = 1
PUBLISHED_MARKERS = ("<sosp>", "<eosp>", "[Human]", "[SpeechGPT]", "<eoh>", "<eos>")
MARKERS = (*PUBLISHED_MARKERS, "<eoa>", "[ta]", "[ua]")
PROFILES = ("native", "upstream")

__all__ = ["MARKERS", "PROFILES", "PUBLISHED_MARKERS", "NativeVocabulary", "Vocabulary", "full_name", "main"]


class Vocabulary(ABC):
    """What prompts, grammar and training need to know of a tokenizer. Ids are plain ints below `size`."""

    profile: str
    base_size: int  # text tokens; units start here
    num_units: int  # K
    size: int  # V: rows of the embedding table
    bos_id: int
    eos_id: int
    pad_id: int

    @abstractmethod
    def encode_text(self, text: str) -> list[int]:
        """Text of a user or an answer -> ids, never a unit or a marker."""

    @abstractmethod
    def decode_text(self, ids: Sequence[int]) -> str:
        """Inverse of `encode_text`; ids that are no text are left out."""

    @abstractmethod
    def marker(self, name: str) -> list[int]:
        """Ids of a marker, `<eoa>` or short `eoa`: one id, or several pieces in the upstream profile."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Writes everything that `Vocabulary.load` and transformers' AutoTokenizer read."""

    @abstractmethod
    def text_ids(self) -> list[int]:
        """All ids that may stand inside text."""

    def check_text(self, text: str) -> str:
        """Returns the text, or raises ValueError when this profile cannot keep it from acting as a marker."""
        _check_unicode(text)
        return text

    def unit_id(self, unit: int) -> int:
        if not 0 <= unit < self.num_units:
            raise ValueError(f"unit {unit} is out of range: the vocabulary has {self.num_units} units")
        return self.base_size + int(unit)

    def units_to_ids(self, units: Iterable[int]) -> list[int]:
        return [self.unit_id(int(u)) for u in units]

    def is_unit(self, token: int) -> bool:
        return self.base_size <= token < self.base_size + self.num_units

    def id_to_unit(self, token: int) -> int:
        if not self.is_unit(token):
            raise ValueError(f"token {token} is no unit: units are {self.base_size} to "
                             f"{self.base_size + self.num_units - 1}")  # fmt: skip
        return token - self.base_size

    def single(self, name: str) -> int:
        """The id of a marker that is one token in both profiles, such as `<sosp>`."""
        ids = self.marker(name)
        if len(ids) != 1:
            raise ValueError(f"{name} is {len(ids)} tokens in the {self.profile} profile, expected one")
        return ids[0]

    def markers(self) -> dict[str, list[int]]:
        return {name: self.marker(name) for name in MARKERS}

    @property
    def new_ids(self) -> list[int]:
        """Rows beyond the base tokenizer's: units and single-token markers."""
        return list(range(self.base_size, self.size))

    def describe(self) -> dict:
        """The content of speechgpt_vocab.json."""
        return {
            "format": FORMAT, "profile": self.profile,
            "base_size": self.base_size, "num_units": self.num_units, "size": self.size,
            "bos_id": self.bos_id, "eos_id": self.eos_id, "pad_id": self.pad_id,
            "markers": self.markers(),
        }  # fmt: skip

    @staticmethod
    def create(tokenizer: str | Path, num_units: int, profile: str = "native") -> "Vocabulary":
        """A new vocabulary over the text tokenizer in a folder."""
        if profile == "upstream":
            from speechgpt.upstream_vocabulary import UpstreamVocabulary

            return UpstreamVocabulary.from_folder(tokenizer, num_units)
        if profile != "native":
            raise ValueError(f"unknown profile {profile!r}; expected one of {', '.join(PROFILES)}")
        return NativeVocabulary.from_folder(tokenizer, num_units)

    @staticmethod
    def load(folder: str | Path) -> "Vocabulary":
        """Reads what `save` wrote, or a published folder (tokenizer.model with added_tokens.json)."""
        from speechgpt.upstream_vocabulary import UpstreamVocabulary

        folder = Path(folder)
        described = folder / VOCABULARY_FILE
        if not described.exists():
            if holds_vocabulary(folder):
                return UpstreamVocabulary.from_published(folder)
            raise FileNotFoundError(
                f"{described} is missing: {folder} is no language model of ours; "
                "make one with `speechgpt init-lm --tokenizer DIR --units K --out DIR`"
            )
        spec = read_json(described)
        if spec.get("format") != FORMAT:
            raise ValueError(f"{described}: format {spec.get('format')!r}, expected {FORMAT}")
        kinds = {"native": NativeVocabulary, "upstream": UpstreamVocabulary}
        if spec.get("profile") not in kinds:
            raise ValueError(f"{described}: profile {spec.get('profile')!r}; expected {' or '.join(kinds)}")
        vocabulary = kinds[spec["profile"]].from_folder(folder, spec["num_units"], spec["base_size"])
        found = vocabulary.describe()
        if wrong := [key for key in found if found[key] != spec.get(key)]:
            raise ValueError(f"{described} does not fit the tokenizer beside it: {', '.join(wrong)} differ")
        return vocabulary


class NativeVocabulary(Vocabulary):
    """Every marker is one token, and text can never yield one."""

    profile = "native"

    def __init__(self, spec: dict, num_units: int, specials: tuple[str, str, str], base_size: int):
        """`spec`: a tokenizer.json, read; `specials`: its tokens for begin, end and padding."""
        self.num_units, self.base_size = num_units, base_size
        self.size = base_size + num_units + len(MARKERS)
        self._specials = specials
        self._added = [a for a in spec.get("added_tokens", []) if a["id"] < base_size]
        named = {**pieces(spec), **{a["content"]: a["id"] for a in self._added}}
        self.bos_id, self.eos_id, self.pad_id = (named[token] for token in specials)
        # Without added tokens the spelling "</s>" in a text is only text.
        self._spec = {**spec, "added_tokens": [], "post_processor": None}
        self._base = Tokenizer.from_str(json.dumps(self._spec))
        self._not_text = {a["id"] for a in self._added} | {self.bos_id, self.eos_id, self.pad_id}
        first = base_size + num_units
        self._markers = {name: first + i for i, name in enumerate(MARKERS)}

    @classmethod
    def from_folder(
        cls, folder: str | Path, num_units: int, base_size: int | None = None
    ) -> "NativeVocabulary":
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; make it with `speechgpt tokenizer --out {folder}`")
        spec = read_json(path)
        if base_size is None:
            taken = [a["content"] for a in spec.get("added_tokens", []) if a["content"] in (*MARKERS, "<0>")]
            if taken:
                raise ValueError(f"{path} already holds {taken[0]}: expected a plain text tokenizer")
            base_size = tokenizer_size(spec)
        return cls(spec, num_units, special_names(folder, spec), base_size)

    def encode_text(self, text: str) -> list[int]:
        self.check_text(text)
        ids = self._base.encode(text, add_special_tokens=False).ids
        return [i for i in ids if i not in self._not_text]

    def decode_text(self, ids: Sequence[int]) -> str:
        return self._base.decode([i for i in ids if i < self.base_size and i not in self._not_text],
                                 skip_special_tokens=False)  # fmt: skip

    def marker(self, name: str) -> list[int]:
        return [self._markers[full_name(name)]]

    def text_ids(self) -> list[int]:
        known = set(pieces(self._spec).values())
        return sorted(i for i in known if i < self.base_size and i not in self._not_text)

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"<{u}>" for u in range(self.num_units)] + list(MARKERS)
        added = [{**_ADDED, "id": self.base_size + i, "content": name} for i, name in enumerate(names)]
        spec = {**self._spec, "added_tokens": self._added + added}
        write_text(folder / "tokenizer.json", json.dumps(spec, ensure_ascii=False, separators=(",", ":")))
        write_json(folder / "tokenizer_config.json", tokenizer_config(self._specials))
        write_json(folder / VOCABULARY_FILE, self.describe())


_ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def holds_vocabulary(folder: str | Path) -> bool:
    """Whether `Vocabulary.load` finds units and markers there, and not a text tokenizer alone."""
    published = [Path(folder) / name for name in ("tokenizer.model", "added_tokens.json")]
    return (Path(folder) / VOCABULARY_FILE).exists() or all(path.exists() for path in published)


def full_name(name: str) -> str:
    """`eoa` -> `<eoa>`. Raises ValueError for an unknown marker."""
    found = [m for m in MARKERS if name in (m, m[1:-1])]
    if not found:
        raise ValueError(f"unknown marker {name!r}; expected one of {' '.join(MARKERS)}")
    return found[0]


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"text holds a lone surrogate at character {error.start}") from error
