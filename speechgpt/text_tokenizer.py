"""The base text tokenizer of a native vocabulary: trained small, or taken over from a LLaMA folder."""

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from speechgpt.data.files import read_json, read_jsonl, write_json, write_text
from speechgpt.data.hub import TOKENIZER, model_folder
from speechgpt.data.settings import load_settings

BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"
# The fields of our own and of the published JSON lines that hold text.
TEXT_FIELDS = ("text", "question", "answer", "description")
NO_LIMIT = 1_000_000  # model_max_length: the row's length is checked where rows are made


def pieces(spec: dict) -> dict[str, int]:
    """Piece -> id of a tokenizer.json that was read."""
    vocab = spec["model"]["vocab"]
    # Unigram models list [piece, score] pairs, all others map piece to id.
    return vocab if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}


def named_ids(spec: dict) -> dict[str, int]:
    """Pieces and added tokens -> id."""
    return {**pieces(spec), **{a["content"]: a["id"] for a in spec.get("added_tokens", [])}}


def tokenizer_size(spec: dict) -> int:
    return 1 + max(named_ids(spec).values())


def special_names(folder: Path, spec: dict) -> tuple[str, str, str]:
    """(begin, end, padding) as the tokenizer's own config names them, or LLaMA's."""
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.exists() else {}
    known = named_ids(spec)

    def name(key: str, *fallbacks: str) -> str:
        value = config.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        for candidate in (value, *fallbacks):
            if candidate in known:
                return candidate
        raise ValueError(f"{folder}: no {key}; expected it in tokenizer_config.json, or one of {fallbacks}")

    bos, eos = name("bos_token", BOS), name("eos_token", EOS)
    return bos, eos, name("pad_token", PAD, UNK, eos)


def tokenizer_config(specials: tuple[str, str, str]) -> dict:
    """The tokenizer_config.json that transformers' AutoTokenizer reads."""
    bos, eos, pad = specials
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos, "pad_token": pad,
        "padding_side": "left", "clean_up_tokenization_spaces": False, "model_max_length": NO_LIMIT,
    }  # fmt: skip


def write_tokenizer(spec: dict, specials: tuple[str, str, str], folder: str | Path) -> None:
    folder = Path(folder)
    write_json(folder / "tokenizer_config.json", tokenizer_config(specials))
    # Last: whoever finds it finds both.
    write_text(folder / "tokenizer.json", json.dumps(spec, ensure_ascii=False, separators=(",", ":")))


def train_tokenizer(texts: Iterable[str], size: int, folder: str | Path) -> int:
    """Trains a byte-level BPE tokenizer of at most `size` tokens (any text round-trips); returns its size."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + 3
    if size < smallest:
        raise ValueError(f"--size {size} is too small: 256 bytes and 3 special tokens need {smallest}")
    tokenizer = Tokenizer(models.BPE())
    # A space before every text, as LLaMA has it: a word is the same token at the start and inside of a text.
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(alphabet), show_progress=False,
        special_tokens=[AddedToken(s, normalized=False, special=True) for s in (PAD, BOS, EOS)],
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    spec = json.loads(tokenizer.to_str())
    write_tokenizer(spec, (BOS, EOS, PAD), folder)
    return tokenizer_size(spec)


def import_tokenizer(source: str | Path, folder: str | Path) -> int:
    """Copies the text tokenizer of a LLaMA (tokenizer.json, or tokenizer.model); returns its size."""
    source = model_folder(source, TOKENIZER)
    if (source / "tokenizer.json").exists():
        spec = read_json(source / "tokenizer.json")
        specials = special_names(source, spec)
    elif (source / "tokenizer.model").exists():
        spec, specials = sentencepiece_to_json(source / "tokenizer.model"), (BOS, EOS, UNK)
    else:
        raise FileNotFoundError(f"{source} holds neither tokenizer.json nor tokenizer.model")
    write_tokenizer(spec, specials, folder)
    return tokenizer_size(spec)


def sentencepiece_to_json(path: str | Path) -> dict:
    """A LLaMA tokenizer.model (BPE with byte fallback) as a tokenizer.json; needs no protobuf."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    vocab = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    if not processor.is_byte(vocab.get("<0x00>", 0)) or processor.id_to_piece(0) != UNK:
        raise ValueError(f"{path}: expected LLaMA's plan, with {UNK} first and 256 byte pieces")
    control = [i for i in vocab.values() if processor.is_control(i) or processor.is_unknown(i)]
    plain = {p: i for p, i in vocab.items() if i not in control and not processor.is_byte(i)}
    # sentencepiece merges the pair whose result scores best; ranked pairs say the same.
    ranked = []
    for piece, i in plain.items():
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        splits = [(a, b) for a, b in splits if a in plain and b in plain]
        ranked += [(-processor.get_score(i), plain[a], plain[b], [a, b]) for a, b in splits]
    merges = [pair for *_, pair in sorted(ranked, key=lambda r: r[:3])]
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "post_processor": None, "pre_tokenizer": None,
        "added_tokens": [{"id": i, "content": processor.id_to_piece(i), **added} for i in sorted(control)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": UNK, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocab, "merges": merges},
    }  # fmt: skip


def read_texts(paths: Iterable[str | Path]) -> Iterator[str]:
    """Lines of text files; of .jsonl files the strings in the fields that hold text."""
    for path in map(Path, paths):
        if path.suffix == ".jsonl":
            for _, row in read_jsonl(path):
                yield from (row[f] for f in TEXT_FIELDS if isinstance(row.get(f), str) and row[f])
        else:
            with open(path, encoding="utf-8") as lines:
                yield from (line.rstrip("\n") for line in lines if line.strip())


@dataclass
class TokenizerSettings:
    """tokenizer.yaml."""

    size: int = 2000  # tokens at most, of a tokenizer that is trained here
    base: str = ""  # LLaMA folder whose tokenizer is taken over; empty: train one


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="speechgpt tokenizer", description="Make the base text tokenizer.")
    parser.add_argument("--config", type=Path, help="tokenizer.yaml; the options below come before it")
    parser.add_argument("--out", required=True, help="folder for tokenizer.json and tokenizer_config.json")
    parser.add_argument("--text", nargs="+", metavar="FILE", help="train on text files or JSON lines")
    parser.add_argument("--from", dest="base", metavar="DIR", help="take the tokenizer of a LLaMA folder")
    parser.add_argument("--size", type=int, help="tokens at most, with --text (default 2000)")
    args = parser.parse_args(argv)
    settings = load_settings(TokenizerSettings, args.config) if args.config else TokenizerSettings()
    if base := args.base or settings.base:
        size = import_tokenizer(base, args.out)
    else:
        texts = list(read_texts(args.text or ()))
        if not texts:
            raise ValueError(f"{', '.join(args.text or ['--text'])}: no text found; expected lines, or JSON "
                             f"lines with one of {', '.join(TEXT_FIELDS)}")  # fmt: skip
        size = train_tokenizer(texts, args.size or settings.size, args.out)
    print(f"{args.out}: {size} tokens")
    return 0
