"""Writes upstream.model and upstream.json with the release that the published checkpoints were trained with.

Run once, in an environment of its own (Python 3.11):
    pip install transformers==4.33.1 sentencepiece "protobuf<4" "numpy<2"
    python make_golden.py LICENSE
LICENSE (any English text) trains the tiny sentencepiece model; the ids are those of the slow LlamaTokenizer.
"""

import json
import sys
from pathlib import Path

import sentencepiece
import transformers
from sentencepiece import sentencepiece_model_pb2

HERE = Path(__file__).parent
NUM_UNITS = 1000
MARKERS = ["<sosp>", "<eosp>", "[Human]", "[SpeechGPT]", "<eoh>", "<eos>"]
PREFIX = (
    "You are an AI assistant whose name is SpeechGPT.\n"
    "- SpeechGPT is a intrinsic cross-modal conversational language model that is developed by Fudan "
    "University.  SpeechGPT can understand and communicate fluently with human through speech or text chosen "
    "by the user.\n- It can perceive cross-modal inputs and generate cross-modal outputs.\n"
)
UNITS = "<sosp><661><987><0><999><12><7><eosp>"
DESCRIPTION = "Please write down what you hear."
TEXTS = [
    "what is the capital of france",
    "  two   spaces\tand a tab \n",
    "Ünïcödé: 你好, мир! \u00a0 ☃ 🙂 e\u0301",
    'a < b, b > a; f(x) [see 3]; "quoted"); done:',
    "12 plus 1234567.89 is... ▁ odd",
    " ",
    "\u3000wide\u2003spaces\u200b",
    "x",
    "ends with a paren)",
    'ends with a quote"',
    "so;",
    "line one\nline two\r\nline three",
]


def strings() -> list[str]:
    cases = [UNITS, "<sosp><eosp>", "", "plain text", " [Human] ", "<eoh>."]
    cases += ["<eoa>.", "<eoa> ", "[ta]", "[ua]"]
    for text in TEXTS:
        cases += [
            text,
            f"{PREFIX}[Human]: {DESCRIPTION} This is input: {UNITS}<eoh> [SpeechGPT]: {text}<eoa> ",
            f"{PREFIX}[Human]: {DESCRIPTION} This is input: {text}<eoh> [SpeechGPT]: {UNITS}<eoa> ",
            f"{PREFIX}[Human]: {UNITS}<eoh>. [SpeechGPT]: {text}; [ta] {text}; [ua] {UNITS}<eoa>.",
            f"{PREFIX}[Human]: {UNITS}<eoh>. [SpeechGPT]: {text}; [ta] {text}<eoa>.",
            f"{PREFIX}[Human]: {text}<eoh>. [SpeechGPT]: [ta] {text}; [ua] {UNITS}<eoa>.",
            f"{PREFIX}[Human]: {text}<eoh>. [SpeechGPT]: [ta] {text}<eoa>.",
            f"{PREFIX}[Human]: {text}<eoh> [SpeechGPT]: {text}<eoa> ",
            f"{PREFIX}[Human]: {text} <eoh>. [SpeechGPT]: ",
            f"[Human]: {text}<eoh>. [SpeechGPT]: {text}<eoa>. [Human]: {UNITS} <eoh>. [SpeechGPT]:",
        ]
    return cases


def forget_paths(path: Path) -> None:
    """Clears where the model was trained, which says nothing about its ids."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    model.trainer_spec.ClearField("input")
    model.trainer_spec.ClearField("model_prefix")
    path.write_bytes(model.SerializeToString())


def main() -> None:
    assert transformers.__version__ == "4.33.1", transformers.__version__
    corpus = HERE / "corpus.tmp"
    template = f'{PREFIX}{DESCRIPTION} This is input: so; [ta] yes; [ua] <eoa>. "word"); done.\n' * 20
    corpus.write_text(Path(sys.argv[1]).read_text() + template)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(HERE / "upstream"), model_type="bpe", vocab_size=800,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", add_dummy_prefix=True,
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, character_coverage=0.99995,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1,
    )  # fmt: skip
    corpus.unlink()
    (HERE / "upstream.vocab").unlink()
    forget_paths(HERE / "upstream.model")
    tokenizer = transformers.LlamaTokenizer(str(HERE / "upstream.model"))
    tokenizer.sanitize_special_tokens()  # from_pretrained does this
    for token in [f"<{u}>" for u in range(NUM_UNITS)] + MARKERS:
        tokenizer.add_tokens([token])
    cases = [{"text": text, "ids": tokenizer(text)["input_ids"][1:]} for text in strings()]
    golden = {
        "made_with": f"transformers {transformers.__version__}, slow LlamaTokenizer",
        "num_units": NUM_UNITS,
        "size": len(tokenizer),
        "markers": {m: tokenizer.convert_tokens_to_ids(m) for m in MARKERS},
        "units": {str(u): tokenizer.convert_tokens_to_ids(f"<{u}>") for u in (0, 12, 999)},
        "prefix": PREFIX,
        "cases": cases,
    }
    lines = json.dumps(golden, ensure_ascii=False)
    (HERE / "upstream.json").write_text(lines.replace('{"text"', '\n{"text"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
