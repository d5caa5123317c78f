"""The model directory: encoder, codebook, language model and vocoder that belong together.

    DIR/speechgpt.json         what the model is, and how it decodes
    DIR/encoder/               HuBERT in Hugging Face layout, and encoder.json
    DIR/codebook.safetensors   centroids, and which encoder and layer they belong to
    DIR/llm/                   LLaMA in Hugging Face layout, tokenizer, speechgpt_vocab.json
    DIR/vocoder/               the unit HiFi-GAN

Looking a model up and refusing a wrong one needs neither torch nor transformers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechgpt.data.files import read_json
from speechgpt.devices import choose_device

if TYPE_CHECKING:
    from speechgpt.generate import Generator
    from speechgpt.units.encode import UnitEncoder
    from speechgpt.vocoder.synthesize import Synthesizer

FORMAT = 1
MODEL_FILE = "speechgpt.json"
MODELS = Path(__file__).parent / "models"  # shipped with the package
LONGEST_QUESTION = 30.0  # seconds
LARGE_WEIGHTS = (
    2 << 30
)  # bytes; on a GPU a larger language model computes in bfloat16, smaller ones in float32


@dataclass(frozen=True)
class ModelConfig:
    """speechgpt.json. A wrong or unknown field is an error that names the file."""

    name: str
    profile: str = "native"  # vocabulary profile: native | upstream
    prefix: str = ""  # system text before every prompt
    layer: int = 1  # encoder layer that the codebook was made from, counted from 1
    decoding: dict[str, Any] = field(default_factory=dict)  # temperature, top_k, ...; empty: the defaults
    max_question_seconds: float = LONGEST_QUESTION  # talk and transcribe refuse longer recordings
    plain_text: bool = False  # typed text becomes lower-case words, numbers spelled out, as it was trained
    duration_scale: float = 1.0  # over 1 speaks slower than the vocoder predicts
    licence: str = ""  # of the weights
    provenance: dict[str, Any] = field(default_factory=dict)  # where the parts came from
    format: int = FORMAT

    @classmethod
    def read(cls, path: Path) -> "ModelConfig":
        values = read_json(path)
        known = [f.name for f in fields(cls)]
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            found = values.get("format") if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"{path}: format {found!r}; this version reads format {FORMAT}")
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"{path}: unknown field {', '.join(unknown)}; known: {', '.join(known)}")
        if "name" not in values:
            raise ValueError(f"{path}: the field name is missing")
        return cls(**values)


@dataclass(frozen=True)
class ModelDir:
    """A model directory that exists and has all its parts."""

    path: Path
    config: ModelConfig

    @property
    def encoder(self) -> Path:
        return self.path / "encoder"

    @property
    def codebook(self) -> Path:
        return self.path / "codebook.safetensors"

    @property
    def llm(self) -> Path:
        return self.path / "llm"

    @property
    def vocoder(self) -> Path:
        return self.path / "vocoder"

    def load_encoder(self, device: str = "auto") -> "UnitEncoder":
        """Refuses a codebook of another encoder or layer."""
        return load_encoder(self.encoder, self.codebook, self.config.layer, device)

    def load_generator(self, device: str = "auto") -> "Generator":
        return load_generator(self.llm, self.config.prefix, self.config.decoding, device)

    def load_synthesizer(self, device: str = "auto") -> "Synthesizer":
        """Refuses a vocoder whose frames last longer or shorter than the encoder's."""
        synthesizer = load_synthesizer(self.vocoder, device)
        ours, theirs = frame_rate(self.encoder), synthesizer.sample_rate / synthesizer.hop
        if abs(ours - theirs) > 1e-6 * ours:
            raise ValueError(
                f"{self.vocoder} speaks {theirs:g} frames a second, {self.encoder} makes {ours:g}; "
                f"train a vocoder whose upsample_rates multiply to {synthesizer.sample_rate / ours:g}"
            )
        return synthesizer


@contextmanager
def naming(*paths: Path) -> Iterator[None]:
    """An error about a part names the part, and broken weights are a ValueError like everything else."""
    from safetensors import SafetensorError

    try:
        yield
    except (ValueError, SafetensorError) as error:
        if isinstance(error, ValueError) and any(str(path) in str(error) for path in paths):
            raise
        raise ValueError(f"{' with '.join(map(str, paths))}: {error}") from error


def load_encoder(encoder: Path, codebook: Path, layer: int | None, device: str = "auto") -> "UnitEncoder":
    """Refuses a codebook of another encoder or layer."""
    from speechgpt.units.encode import UnitEncoder

    with naming(codebook, encoder):
        return UnitEncoder.load(encoder, codebook, layer=layer, device=choose_device(device))


def load_synthesizer(vocoder: Path, device: str = "auto") -> "Synthesizer":
    from speechgpt.vocoder.synthesize import Synthesizer

    with naming(vocoder):
        return Synthesizer.load(vocoder, device=choose_device(device))


def load_generator(
    llm: str | Path, prefix: str = "", decoding: dict[str, Any] | None = None, device: str = "auto"
) -> "Generator":
    """A language model folder with its prompts, its decoding and its grammar."""
    from speechgpt.generate import Decoding, Generator
    from speechgpt.model import load_trained
    from speechgpt.prompts import PromptFormat

    llm, device = Path(llm), choose_device(device)
    weights = sum(p.stat().st_size for pattern in ("*.safetensors", "*.bin") for p in llm.glob(pattern))
    dtype = "bfloat16" if weights > LARGE_WEIGHTS and device != "cpu" else "float32"
    settings = Decoding.from_dict(decoding or {})
    with naming(llm):
        model, vocabulary = load_trained(llm, dtype)
    return Generator(model.to(device), PromptFormat(vocabulary, prefix), settings)


def frame_rate(encoder: Path) -> float:
    """Frames a second of an encoder folder, by its files alone."""
    from speechgpt.units.encoder_files import read_configs

    with naming(encoder):
        config, extra = read_configs(encoder)
    return extra["sample_rate"] / prod(config.conv_stride)


def known_models() -> list[str]:
    """Names of the models that this installation ships."""
    return sorted(p.parent.name for p in MODELS.glob(f"*/{MODEL_FILE}"))


def find_model(model: str | Path) -> ModelDir:
    """A shipped model by name, or a model directory. Raises ValueError that lists the known names."""
    named = MODELS / str(model)
    path = named if str(model) in known_models() else Path(model)
    if not (path / MODEL_FILE).is_file():
        known = ", ".join(known_models()) or "none is shipped here"
        what = f"folder without {MODEL_FILE}" if path.is_dir() else "no such model or folder"
        raise ValueError(
            f"unknown model {str(model)!r} ({what}); known models: {known}; or give a model directory"
        )
    found = ModelDir(path, ModelConfig.read(path / MODEL_FILE))
    parts = (found.encoder, found.codebook, found.llm, found.vocoder)
    if missing := [p.name for p in parts if not p.exists()]:
        raise ValueError(
            f"{path}: the model has no {', '.join(missing)}; `speechgpt assemble` builds a whole one"
        )
    return found
