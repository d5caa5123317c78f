"""Models of random weights that say one fixed turn: the work of a real one, at any sizes, for timings."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from speechgpt.data.dialogue_rows import ChainRow
from speechgpt.data.published import PREFIX
from speechgpt.decoding import chooser
from speechgpt.generate import Generator
from speechgpt.llama_decoder import LlamaDecoder
from speechgpt.llama_sizes import LlamaSizes
from speechgpt.model_dir import ModelConfig, ModelDir
from speechgpt.pipeline import SpeechGPT
from speechgpt.prompts import PromptFormat
from speechgpt.units.codebook import Codebook, Provenance
from speechgpt.units.encoder import Encoder
from speechgpt.units.unit_encoder import UnitEncoder
from speechgpt.upstream_vocabulary import UpstreamVocabulary
from speechgpt.vocoder.generator import UnitVocoder, VocoderConfig
from speechgpt.vocoder.synthesize import Synthesizer

PIECES, ROWS = 32_000, 33_006  # of LLaMA's tokenizer, and of the published table
QUESTION_SECONDS = 3.0
# Of a deduplicated unit at 50 Hz the published predictor says between one and two frames, rarely more.
FRAMES_A_UNIT = 1.5
SPREAD = 0.2  # of the predictor's random weights: some units last one frame, some two
WORD = "a"  # one piece


@dataclass(frozen=True)
class Sizes:
    """Of a whole system. The defaults are the published ones."""

    llama: LlamaSizes = LlamaSizes(
        vocabulary=ROWS, hidden=4096, inner=11_008, layers=32, heads=32, groups=32, width=128, context=2048,
        epsilon=1e-6, tied=False, rope={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    dtype: torch.dtype = torch.bfloat16  # of the language model
    encoder: dict = field(default_factory=dict)  # settings of HubertConfig that are not HuBERT base's
    layer: int = 11
    vocoder: dict = field(default_factory=dict)  # settings of VocoderConfig that are not the published ones
    text_tokens: int = 60  # of transcript and answer
    units: int = 300  # of the answer


TOY = Sizes(
    llama=LlamaSizes(
        vocabulary=ROWS, hidden=32, inner=48, layers=2, heads=2, groups=2, width=16, context=2048,
        epsilon=1e-6, tied=False, rope={"rope_type": "default", "rope_theta": 10_000.0},
    ),
    dtype=torch.float32,
    encoder={
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
    },
    layer=2,
    vocoder={"initial_channels": 32, "embedding_dim": 8, "duration_width": 8},
    text_tokens=10,
    units=60,
)  # fmt: skip


class FixedGenerator(Generator):
    """Chooses as any generator does, and says the tokens of `answer` all the same."""

    answer: Sequence[int] = ()

    def _chooser(self) -> Callable[[torch.Tensor], torch.Tensor]:
        choose, said = chooser(self.decoding, self.decoder.device), iter(range(len(self.answer)))
        answer = torch.tensor(self.answer, device=self.decoder.device)

        def fixed(scores: torch.Tensor) -> torch.Tensor:
            place = next(said)
            choose(scores)
            return answer[place : place + 1]

        return fixed


def fixed_model(sizes: Sizes, device: torch.device, folder: Path) -> SpeechGPT:
    """Random weights, made on the device, and a generator that says one turn. `folder` takes a tokenizer."""
    model = SpeechGPT(ModelDir(Path("random"), ModelConfig("random", "upstream")), str(device), llm=False)
    model.encoder = _encoder(sizes, device)
    model.synthesizer = _synthesizer(sizes, device)
    write_tokenizer(folder / "tokenizer.model")
    vocabulary = UpstreamVocabulary(folder / "tokenizer.model", ROWS - PIECES - 6)
    decoder = LlamaDecoder.random(sizes.llama, sizes.dtype, device)
    model.generator = FixedGenerator(decoder, PromptFormat(vocabulary, PREFIX))
    units = np.cumsum(np.random.default_rng(2).integers(1, vocabulary.num_units, sizes.units))
    text = " ".join([WORD] * (sizes.text_tokens // 2))
    row = ChainRow("fixed", "speech-speech", text, text, [1, 2, 3], (units % vocabulary.num_units).tolist())
    rendered = model.generator.format.render(row)
    model.generator.answer = rendered.ids[rendered.prompt_length :]
    return model


def noise(seed: int, seconds: float = QUESTION_SECONDS) -> np.ndarray:
    """(T,) float32 at 16 kHz: a question of which no two frames are alike."""
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16_000)).astype(np.float32)


def _encoder(sizes: Sizes, device: torch.device) -> UnitEncoder:
    """Its codebook are features of its own, so that many units are used."""
    encoder = Encoder.create(sizes.encoder, False, 0).to(device).eval()
    size = ROWS - PIECES - 6
    centroids = encoder.features([noise(1, (size + 1) * encoder.hop / encoder.sample_rate)], sizes.layer)[0]
    provenance = Provenance(encoder.fingerprint, sizes.layer, encoder.sample_rate, encoder.hop, False)
    return UnitEncoder(encoder, Codebook(centroids[:size].cpu(), provenance))


def _synthesizer(sizes: Sizes, device: torch.device) -> Synthesizer:
    torch.manual_seed(0)
    vocoder = UnitVocoder(VocoderConfig(**sizes.vocoder)).eval()
    with torch.no_grad():
        vocoder.dur_predictor.proj.weight.mul_(SPREAD)
        vocoder.dur_predictor.proj.bias.fill_(np.log(1 + FRAMES_A_UNIT))
    return Synthesizer(vocoder.to(device))


def write_tokenizer(path: Path) -> None:
    """A sentencepiece model of LLaMA's 32,000 pieces, most of which no text holds."""
    import sentencepiece

    tasks = files("speechgpt.data") / "tasks"
    lines = [line for task in tasks.iterdir() for line in task.read_text(encoding="utf-8").splitlines()]
    made = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=made, vocab_size=600, model_type="bpe",
        byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    known = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue()).get_piece_size()
    # Messages of protocol buffers that are written one after the other are one message.
    unused = b"".join(_piece(f"\ue000{number}", -1e6 - number) for number in range(known, PIECES))
    path.write_bytes(made.getvalue() + unused)


def _piece(text: str, score: float) -> bytes:
    """An entry of the model's first field: text (field 1) and score (field 2), shorter than 128 bytes."""
    spelled = text.encode()
    entry = bytes([0x0A, len(spelled)]) + spelled + b"\x15" + struct.pack("<f", score)
    return bytes([0x0A, len(entry)]) + entry
