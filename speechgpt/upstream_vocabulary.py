"""The vocabulary of the published checkpoints: LLaMA's sentencepiece model, the units, and six markers.

`<eoa>`, `[ta]` and `[ua]` were never added there, so they are several pieces each. The ids are those of the
slow LlamaTokenizer of transformers 4.33.1, with which the checkpoints were trained: it splits a text at the
added tokens, strips white space on both sides of them, and encodes every stretch between on its own, with
the space that sentencepiece puts in front.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from speechgpt.data.files import atomic_path, read_json, write_json
from speechgpt.vocabulary import MARKERS, PUBLISHED_MARKERS, VOCABULARY_FILE, Vocabulary, full_name

SPACE = "▁"  # sentencepiece's spelling of a space
SPECIALS = ("<unk>", "<s>", "</s>")
# What text must not hold: whatever the tokenizer or a reader of the text would take for structure.
FORBIDDEN = re.compile("|".join([r"<\d+>", *(re.escape(m) for m in (*MARKERS, *SPECIALS))]))
PUBLISHED_PAD_ID = 0


class UpstreamVocabulary(Vocabulary):
    """33,006 rows over LLaMA's 32,000: published checkpoints read and write exactly these ids."""

    profile = "upstream"

    def __init__(self, model: str | Path, num_units: int):
        if not Path(model).exists():
            raise FileNotFoundError(f"{model} is missing; the upstream profile needs LLaMA's tokenizer.model")
        self.model_path = Path(model)
        try:
            self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{model}: not a sentencepiece model") from error
        self.num_units, self.base_size = num_units, self.pieces.get_piece_size()
        self.size = self.base_size + num_units + len(PUBLISHED_MARKERS)
        self.bos_id, self.eos_id, self.pad_id = self.pieces.bos_id(), self.pieces.eos_id(), PUBLISHED_PAD_ID
        added = [f"<{u}>" for u in range(num_units)] + list(PUBLISHED_MARKERS)
        self._added = {token: self.base_size + i for i, token in enumerate(added)}
        # `<12>` is a token only when 12 is below K; regular expressions need no list of all of them.
        markers = "|".join(re.escape(m) for m in PUBLISHED_MARKERS)
        self._split = re.compile(rf"(<(?:0|[1-9]\d*)>|{markers})", re.ASCII)

    @classmethod
    def from_folder(
        cls, folder: str | Path, num_units: int, base_size: int | None = None
    ) -> "UpstreamVocabulary":
        vocabulary = cls(Path(folder) / "tokenizer.model", num_units)
        if base_size is not None and vocabulary.base_size != base_size:
            raise ValueError(
                f"{folder}/tokenizer.model has {vocabulary.base_size} pieces, expected {base_size}"
            )
        return vocabulary

    @classmethod
    def from_published(cls, folder: str | Path) -> "UpstreamVocabulary":
        """Reads a published checkpoint's tokenizer.model and added_tokens.json, and checks every id."""
        path = Path(folder) / "added_tokens.json"
        found = {token: i for token, i in read_json(path).items() if token not in SPECIALS}
        num_units = sum(1 for token in found if re.fullmatch(r"<\d+>", token))
        vocabulary = cls(Path(folder) / "tokenizer.model", num_units)
        wrong = sorted(t for t in {**found, **vocabulary._added} if found.get(t) != vocabulary._added.get(t))
        # A padding token that somebody added is no part of the published rows.
        wrong = [token for token in wrong if token not in ("<pad>", "[PAD]")]
        if wrong:
            token = wrong[0]
            expected = vocabulary._added.get(token)
            raise ValueError(f"{path}: {token} is {found.get(token)}, expected {expected} "
                             f"(units from {vocabulary.base_size}, then the markers)")  # fmt: skip
        return vocabulary

    def check_text(self, text: str) -> str:
        super().check_text(text)
        if found := FORBIDDEN.search(text):
            raise ValueError(f"text holds {found.group()!r}, which this model takes for a marker; "
                             "leave it out, or use a model of the native profile")  # fmt: skip
        return text

    def encode_text(self, text: str) -> list[int]:
        """One stretch of text on its own, with the space in front that sentencepiece puts there."""
        return self.pieces.encode(self.check_text(text)) if text else []

    def encode_template(self, text: str) -> list[int]:
        """A whole rendered row, markers and units included. Text of users in it must be checked before."""
        parts = self._split.split(text)
        known = [part in self._added for part in parts]
        parts, known = _join_unknown(parts, known)
        ids: list[int] = []
        for i, part in enumerate(parts):
            if known[i]:
                ids.append(self._added[part])
                continue
            if i + 1 < len(parts):
                part = part.rstrip()
            if i > 0:
                part = part.lstrip()
            ids += self.pieces.encode(part) if part else []
        return ids

    def decode_text(self, ids: Sequence[int]) -> str:
        special = (self.bos_id, self.eos_id, self.pieces.unk_id())
        return self.pieces.decode([int(i) for i in ids if i < self.base_size and i not in special])

    def marker(self, name: str) -> list[int]:
        name = full_name(name)
        return [self._added[name]] if name in self._added else self.pieces.encode(name)

    def text_ids(self) -> list[int]:
        special = (self.bos_id, self.eos_id, self.pieces.unk_id())
        return [i for i in range(self.base_size) if i not in special and not self.pieces.is_control(i)]

    def piece_text(self, token: int) -> str:
        """The characters that a text token adds; one U+FFFD for a byte of a longer character."""
        if self.pieces.is_byte(token):
            value = int(self.pieces.id_to_piece(token)[3:5], 16)
            return chr(value) if value < 0x80 else "\ufffd"
        return self.pieces.id_to_piece(token).replace(SPACE, " ")

    def save(self, folder: str | Path) -> None:
        """tokenizer.model, and the added tokens as transformers 4 wrote them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / "tokenizer.model"
        if target.resolve() != self.model_path.resolve():
            with atomic_path(target) as part:
                shutil.copyfile(self.model_path, part)
        write_json(folder / "added_tokens.json", self._added)
        write_json(folder / "special_tokens_map.json", _TOKENS)
        write_json(folder / "tokenizer_config.json", {
            "tokenizer_class": "LlamaTokenizer", "legacy": True, "padding_side": "left",
            "add_bos_token": True, "add_eos_token": False, **_TOKENS})  # fmt: skip
        write_json(folder / VOCABULARY_FILE, self.describe())


_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}


def _join_unknown(parts: list[str], known: list[bool]) -> tuple[list[str], list[bool]]:
    """Joins neighbouring parts that are no tokens, such as `<1000>` at K = 1000; drops empty ones."""
    joined: list[str] = []
    flags: list[bool] = []
    for part, is_known in zip(parts, known, strict=True):
        if not part:
            continue
        if not is_known and flags and not flags[-1]:
            joined[-1] += part
        else:
            joined.append(part)
            flags.append(is_known)
    return joined, flags
