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
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechgpt.data.files import read_json
from speechgpt.data.hub import ADAPTER, ENCODER, LLAMA, is_hub_name, model_folder, named_path
from speechgpt.data.published import PREFIX
from speechgpt.units.devices import choose_device

if TYPE_CHECKING:
    from speechgpt.generate import Generator
    from speechgpt.units.unit_encoder import UnitEncoder
    from speechgpt.vocoder.synthesize import Synthesizer

FORMAT = 1
MODEL_FILE = "speechgpt.json"
MODELS = Path(__file__).parent / "models"  # shipped with the package
LONGEST_QUESTION = 30.0  # seconds
# Bytes; on a GPU a larger language model computes in bfloat16, smaller ones in float32.
LARGE_WEIGHTS = 2 << 30
# How the paper decodes (section 4 of SpeechGPT, arXiv 2305.11000).
PUBLISHED_DECODING = {"sample": True, "temperature": 0.8, "top_k": 60, "top_p": 0.8, "max_new_tokens": 2048}


@dataclass(frozen=True)
class ModelConfig:
    """speechgpt.json. A wrong or unknown field is an error that names the file."""

    name: str
    profile: str = "native"  # vocabulary profile: native | upstream
    prefix: str = ""  # system text before every prompt
    layer: int = 1  # encoder layer that the codebook was made from, from 1; 0: the one that the codebook says
    decoding: dict[str, Any] = field(default_factory=dict)  # temperature, top_k, ...; empty: the defaults
    max_question_seconds: float = LONGEST_QUESTION  # talk and transcribe refuse longer recordings
    plain_text: bool = False  # typed text becomes lower-case words, numbers spelled out, as it was trained
    duration_scale: float = 1.0  # over 1 speaks slower than the vocoder predicts
    single_turns: bool = False  # it was trained on these alone: a turn is asked as if it were the first
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
    """A model directory that exists and has all its parts; or a language model with the parts given to it."""

    path: Path
    config: ModelConfig
    given: dict[str, Path] = field(default_factory=dict)  # parts from elsewhere, and perhaps "lora"
    layer: int | None = (
        None  # that was asked for; by default the codebook's, or the model's for its own codebook
    )

    @property
    def encoder(self) -> Path:
        return self.given.get("encoder", self.path / "encoder")

    @property
    def codebook(self) -> Path:
        return self.given.get("codebook", self.path / "codebook.safetensors")

    @property
    def llm(self) -> Path:
        return self.given.get("llm", self.path / "llm")

    @property
    def vocoder(self) -> Path:
        return self.given.get("vocoder", self.path / "vocoder")

    def hearing(self, times: int | None) -> "ModelDir":
        """The same model, which hears spoken questions so many times; None: as often as it says itself."""
        if times is None:
            return self
        said = {"hearings": times, "asr_hearings": 0}
        return replace(self, config=replace(self.config, decoding=self.config.decoding | said))

    def check(self, *parts: str) -> None:
        """Raises ValueError that names the options when the language model came without these parts."""
        if missing := [name for name in parts if name not in self.given and not getattr(self, name).exists()]:
            options = " ".join(f"--{name} PATH" for name in missing)
            raise ValueError(f"{self.path}: a language model without {' and '.join(missing)}; give {options}")

    def load_encoder(self, device: str = "auto") -> "UnitEncoder":
        """Refuses a codebook of another encoder or layer."""
        self.check("encoder", "codebook")
        ours = None if "codebook" in self.given else self.config.layer or None
        layer = ours if self.layer is None else self.layer
        return load_encoder(self.encoder, self.codebook, layer, device)

    def load_generator(self, device: str = "auto") -> "Generator":
        lora = self.given.get("lora")
        return load_generator(self.llm, self.config.prefix, self.config.decoding, device, lora)

    def load_synthesizer(self, device: str = "auto") -> "Synthesizer":
        """Refuses a vocoder whose frames last longer or shorter than the encoder's."""
        self.check("vocoder")
        synthesizer = load_synthesizer(self.vocoder, device)
        if "encoder" not in self.given and not self.encoder.exists():  # who only speaks needs none
            return synthesizer
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
    """Refuses a codebook of another encoder or layer. Original files are converted once, to the cache."""
    from speechgpt.conversion_cache import ready_codebook, ready_encoder
    from speechgpt.units.unit_encoder import UnitEncoder

    with naming(codebook, encoder):
        encoder = ready_encoder(encoder)
        codebook = ready_codebook(codebook, encoder, layer)
        return UnitEncoder.load(encoder, codebook, layer=layer, device=choose_device(device))


def load_synthesizer(vocoder: Path, device: str = "auto", config: Path | None = None) -> "Synthesizer":
    """`vocoder`: a folder or a CodeHiFiGAN generator; `config`: the generator's, if it is not beside it."""
    from speechgpt.conversion_cache import ready_vocoder
    from speechgpt.vocoder.synthesize import Synthesizer

    with naming(vocoder):
        return Synthesizer.load(ready_vocoder(vocoder, config), device=choose_device(device))


def load_generator(
    llm: str | Path,
    prefix: str = "",
    decoding: dict[str, Any] | None = None,
    device: str = "auto",
    lora: str | Path | None = None,
) -> "Generator":
    """A language model folder with its prompts, its decoding and its grammar.

    `llm` may be a hub name, and `lora` is merged into it; an adapter's folder alone names its base.
    """
    from speechgpt.generate import Decoding, Generator
    from speechgpt.lora_files import base_of, is_adapter
    from speechgpt.model import load_decoder
    from speechgpt.prompts import PromptFormat

    llm, device = model_folder(llm, LLAMA, ADAPTER), choose_device(device)
    if lora is None and is_adapter(llm):
        llm, lora = base_of(llm), llm
    elif lora is not None:
        lora = model_folder(lora, ADAPTER)
    weights = sum(p.stat().st_size for pattern in ("*.safetensors", "*.bin") for p in llm.glob(pattern))
    dtype = "bfloat16" if weights > LARGE_WEIGHTS and device.type != "cpu" else "float32"
    settings = Decoding.from_dict(decoding or {})
    with naming(*([llm, lora] if lora else [llm])):
        model, vocabulary = load_decoder(llm, dtype, lora, device)
    return Generator(model, PromptFormat(vocabulary, prefix), settings)


def frame_rate(encoder: Path) -> float:
    """Frames a second of an encoder (a folder, a hub name or an original file), by its files alone."""
    from speechgpt.conversion_cache import ready_encoder
    from speechgpt.units.encoder_files import read_configs

    with naming(encoder):
        config, extra = read_configs(model_folder(ready_encoder(encoder), ENCODER))
    return extra["sample_rate"] / config.hop


def known_models() -> list[str]:
    """Names of the models that this installation ships."""
    return sorted(p.parent.name for p in MODELS.glob(f"*/{MODEL_FILE}"))


def find_model(model: str | Path, layer: int | None = None, **given: Path | None) -> ModelDir:
    """A shipped model by name, a model directory, or a language model by its folder or hub name.

    `given`: encoder, codebook, vocoder and lora from elsewhere; None: the model's own. `layer`: of a codebook
    that does not say its own. Raises ValueError that lists the known names, and FileNotFoundError for a part
    that is not here.
    """
    parts = {name: named_path(path) for name, path in given.items() if path is not None}
    for name, part in parts.items():
        if not part.exists() and not is_hub_name(part):
            raise FileNotFoundError(f"--{name} {part}: no such file or folder, and no name on the hub")
    named = MODELS / str(model)
    path = named if str(model) in known_models() else model_folder(model, LLAMA, ADAPTER)
    if not (path / MODEL_FILE).is_file():
        if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
            return ModelDir(path, _bare_config(path), {"llm": path, **parts}, layer)
        known = ", ".join(known_models()) or "none is shipped here"
        what = f"folder without {MODEL_FILE}" if path.is_dir() else "no such model or folder"
        raise ValueError(
            f"unknown model {str(model)!r} ({what}); known models: {known}; or give a model directory"
        )
    found = ModelDir(path, ModelConfig.read(path / MODEL_FILE), parts, layer)
    paths = (found.encoder, found.codebook, found.llm, found.vocoder)
    if missing := [p.name for p in paths if not p.exists() and not is_hub_name(p)]:
        raise ValueError(
            f"{path}: the model has no {', '.join(missing)}; `speechgpt assemble` builds a whole one"
        )
    return found


def _bare_config(folder: Path) -> ModelConfig:
    """What a language model without a speechgpt.json is taken for: as published, where its tokens are."""
    described = folder / "speechgpt_vocab.json"
    native = described.is_file() and read_json(described).get("profile") == "native"
    if native:
        return ModelConfig(folder.name, layer=0)
    return ModelConfig(folder.name, "upstream", PREFIX, layer=0, decoding=PUBLISHED_DECODING)
