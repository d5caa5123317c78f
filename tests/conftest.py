"""Fixtures that every folder of tests may use: a tiny model in the true format, and recordings."""

import os
import subprocess
import sys

# Two cores are shared by many processes: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402

TINY_UNITS = 12  # K
TINY_LAYER = 2
TINY_TEXTS = (
    "what is three plus four",
    "one coffee with milk please",
    "say the word see after me",
    "no less moss",
)


def tone(seconds: float, pitch: float = 180.0, rate: int = 16_000) -> np.ndarray:
    """(T,) float32: a gliding harmonic tone, so that its frames differ."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (pitch * time + 60 * time**2)
    waveform = sum(np.sin(k * phase) / k for k in range(1, 5)) * (0.6 + 0.4 * np.sin(9 * time))
    return (0.2 * waveform).astype(np.float32)


def tiny_encoder(seed: int = 0, normalize: bool = False):
    """A HuBERT of the true strides and random weights."""
    from speechgpt.units.encoder import Encoder

    architecture = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": [8] * 7,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    }
    return Encoder.create(architecture, normalize, seed).eval()


def tiny_codebook(encoder, size: int = TINY_UNITS, layer: int = TINY_LAYER, seed: int = 0):
    """Centroids drawn from the encoder's own features, so that several of them are used."""
    import torch

    from speechgpt.units.codebook import Codebook, Provenance

    features = torch.cat(encoder.features([tone(2.0), tone(1.5, 90)], layer))  # N D
    rows = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:size]
    provenance = Provenance(
        encoder.fingerprint, layer, encoder.sample_rate, encoder.hop, encoder.normalize, seed, len(features)
    )
    return Codebook(features[rows], provenance)


OF_25_HZ = {"upsample_rates": [8, 5, 4, 4], "upsample_kernels": [16, 11, 8, 8]}  # of tiny_vocoder


def tiny_vocoder(size: int = TINY_UNITS, codebook: dict | None = None, **changes):
    """`changes`: settings of its own, such as `**OF_25_HZ`."""
    import torch

    from speechgpt.vocoder.generator import UnitVocoder, VocoderConfig

    torch.manual_seed(0)
    config = VocoderConfig(
        num_units=size,
        embedding_dim=8,
        initial_channels=32,
        resblock_kernels=[3],
        resblock_dilations=[[1, 3]],
        duration_width=8,
        codebook=codebook or {},
        **changes,
    )
    return UnitVocoder(config).eval()


def tiny_llm(folder: Path, size: int = TINY_UNITS, seed: int = 1) -> None:
    """A LLaMA of random weights with its tokenizer, as `speechgpt tokenizer` and `init-lm` write them."""
    from speechgpt.model import LlamaSettings, new_llama, save_llama
    from speechgpt.text_tokenizer import train_tokenizer
    from speechgpt.vocabulary import Vocabulary

    train_tokenizer(TINY_TEXTS * 3, 300, folder.with_name(folder.name + ".tokenizer"))
    vocabulary = Vocabulary.create(folder.with_name(folder.name + ".tokenizer"), size)
    settings = LlamaSettings(hidden=32, layers=2, heads=2, intermediate=64, context=512, seed=seed)
    save_llama(new_llama(settings, vocabulary), vocabulary, folder)


@pytest.fixture(scope="session")
def tiny_parts(tmp_path_factory) -> dict[str, Path]:
    """Paths of encoder, codebook, llm and vocoder, each saved by its own code."""
    from dataclasses import asdict

    folder = tmp_path_factory.mktemp("parts")
    paths = {name: folder / name for name in ("encoder", "llm", "vocoder")}
    paths["codebook"] = folder / "codebook.safetensors"
    encoder = tiny_encoder()
    encoder.save(paths["encoder"])
    codebook = tiny_codebook(encoder)
    codebook.save(paths["codebook"])
    tiny_llm(paths["llm"])
    tiny_vocoder(codebook=asdict(codebook.provenance)).save(paths["vocoder"])
    return paths


@pytest.fixture(scope="session")
def tiny_model(tiny_parts, tmp_path_factory) -> Path:
    """A whole model directory, through the code of `speechgpt assemble`."""
    from speechgpt.assemble import ModelSettings, Parts, assemble

    out = tmp_path_factory.mktemp("model") / "tiny"
    short = {"max_text_tokens": 8, "max_units": 30, "max_new_tokens": 100}  # random weights never stop
    settings = ModelSettings("tiny", "Apache-2.0", max_question_seconds=10.0, decoding=short, half=False)
    assemble(Parts.load(tiny_parts), settings, "", out)
    return out


@pytest.fixture(scope="session")
def other_parts(tmp_path_factory) -> dict[str, Path]:
    """Parts that fit neither the tiny model nor each other's sizes."""
    folder = tmp_path_factory.mktemp("other")
    paths = {name: folder / name for name in ("encoder", "llm", "vocoder")}
    paths["codebook"] = folder / "codebook.safetensors"
    encoder = tiny_encoder(seed=7)
    encoder.save(paths["encoder"])
    tiny_codebook(encoder).save(paths["codebook"])
    tiny_llm(paths["llm"], size=5)
    tiny_vocoder(size=7).save(paths["vocoder"])
    return paths


@pytest.fixture(scope="session")
def make_tone():
    """`make_tone(seconds, pitch=180.0, rate=16_000)` gives (T,) float32."""
    return tone


@pytest.fixture
def recording(tmp_path) -> Path:
    """One second of a tone, 16 kHz mono."""
    import soundfile

    path = tmp_path / "question.wav"
    soundfile.write(path, tone(1.0), 16_000)
    return path


# The interpreter's loops over a run-time number fail with numpy 2.4, which turns no (1,) array into an int.
INTERPRETER = """
from triton.runtime import interpreter
patch = interpreter._patch_lang_tensor
def patched(tensor, scope):
    patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))
interpreter._patch_lang_tensor = patched
"""


@pytest.fixture
def interpreted():
    """`interpreted(script, *arguments)` runs it in a process whose Triton kernels the interpreter computes on
    the CPU; it must print "equal" and nothing else."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}

    def run(script: str, *arguments: str) -> None:
        command = [sys.executable, "-c", INTERPRETER + script, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.stdout.strip() == "equal", done.stderr[-2000:]

    return run


@pytest.fixture
def compiled_for_gpu():
    """`compiled_for_gpu(kernel, types, constants, num_warps=4)` compiles a Triton kernel for a GPU that need
    not be there (compute capability 9.0); pointers are multiples of 16 bytes, as PyTorch's are."""
    triton = pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET"):
        pytest.skip("the interpreter compiles nothing")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def compile_kernel(kernel, types: dict[str, str], constants: dict, **options):
        names = kernel.arg_names
        source = ASTSource(
            fn=kernel,
            signature={n: "constexpr" if n in constants else types.get(n, "i32") for n in names},
            constexprs={name: value for name, value in constants.items() if name in names},
            attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if "*" in types.get(n, "")},
        )
        return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4} | options)

    return compile_kernel
