"""`speechgpt assemble`: encoder, codebook, language model and vocoder to one model directory.

Parts that do not belong together are refused by name, before anything is written.
"""

import argparse
import hashlib
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from speechgpt.data.files import read_json, write_json
from speechgpt.data.hub import named_path
from speechgpt.data.settings import load_settings
from speechgpt.model_dir import LONGEST_QUESTION, MODEL_FILE, ModelConfig, ModelDir
from speechgpt.stages import StageConfig

MEGABYTE = 1_000_000  # bytes


@dataclass
class ModelSettings:
    """model.yaml: what a model directory says about itself."""

    name: str
    licence: str = ""  # of the weights
    max_question_seconds: float = LONGEST_QUESTION  # talk and transcribe refuse longer recordings
    plain_text: bool = False  # typed text becomes lower-case words, numbers spelled out, as it was trained
    duration_scale: float = 1.0  # over 1 speaks slower than the vocoder predicts
    single_turns: bool = False  # it was trained on these alone: a turn is asked as if it were the first
    decoding: dict = field(
        default_factory=dict
    )  # temperature, top_k, top_p, ...; empty: the generator's defaults
    half: bool = True  # weights as float16, half the size

    @classmethod
    def load(cls, path: str | Path) -> "ModelSettings":
        return load_settings(cls, path)


@dataclass
class Parts:
    """The four parts, loaded, and where they came from."""

    encoder: Any  # speechgpt.units.encoder.Encoder
    codebook: Any  # speechgpt.units.codebook.Codebook
    llm: Any  # transformers.LlamaForCausalLM
    vocabulary: Any  # speechgpt.vocabulary.Vocabulary
    vocoder: Any  # speechgpt.vocoder.generator.UnitVocoder
    paths: dict[str, Path]

    @classmethod
    def load(cls, paths: dict[str, Path]) -> "Parts":
        from speechgpt.model import load_trained
        from speechgpt.units.codebook import Codebook
        from speechgpt.units.encoder import Encoder
        from speechgpt.vocoder.generator import UnitVocoder

        if (adapter := paths["llm"] / "adapter_config.json").exists():
            raise ValueError(f"{adapter}: an adapter alone; `speechgpt merge-lora` makes a whole model of it")
        llm, vocabulary = load_trained(paths["llm"])
        encoder = Encoder.load(paths["encoder"], "cpu")
        codebook, vocoder = Codebook.load(paths["codebook"]), UnitVocoder.load(paths["vocoder"], "cpu")
        return cls(encoder, codebook, llm, vocabulary, vocoder, paths)

    def check(self) -> None:
        """Raises one ValueError that names every pair of parts that do not fit."""
        names, issues = self.paths, []
        try:
            self.codebook.check(self.encoder, self.codebook.provenance.layer)
        except ValueError as error:
            issues.append(f"{names['codebook']} and {names['encoder']}: {error}")
        sizes = {"llm": self.vocabulary.num_units, "vocoder": self.vocoder.config.num_units}
        for part, size in sizes.items():
            if size != self.codebook.size:
                issues.append(f"{names['codebook']} has {self.codebook.size} units, {names[part]} has {size}")
        # Who speaks the units that the centroids were fitted for speaks those of an encoder trained to them.
        trained = self.vocoder.config.codebook
        book = self.codebook
        if trained.get("encoder") == book.provenance.kept_from:
            book = book.as_fitted()
        mine = asdict(book.provenance) | {"sha256": hashlib.sha256(book.to_bytes()).hexdigest()}
        for key, theirs in trained.items():
            if key in mine and theirs != mine[key]:
                issues.append(
                    f"{names['vocoder']} speaks units of {key} {theirs}, {names['codebook']} has {mine[key]}"
                )
        ours = self.encoder.hop / self.encoder.sample_rate
        if abs(ours - (theirs := self.vocoder.hop / self.vocoder.sample_rate)) > 1e-9:
            issues.append(
                f"a frame of {names['encoder']} lasts {ours} s, one of {names['vocoder']} {theirs} s"
            )
        if issues:
            raise ValueError("the parts do not belong together: " + "; ".join(issues))

    def save(self, folder: Path, half: bool) -> None:
        """Writes encoder/ (cut after the codebook's layer), codebook.safetensors, llm/ and vocoder/."""
        import torch

        from speechgpt.model import save_llama

        target = ModelDir(folder, ModelConfig("unused"))
        self.encoder.save(target.encoder, torch.float16 if half else None, self.codebook.provenance.layer)
        self.codebook.save(target.codebook)
        save_llama(self.llm.half() if half else self.llm, self.vocabulary, target.llm)
        self.vocoder.save(target.vocoder, half=half)


def assemble(
    parts: Parts, settings: ModelSettings, prefix: str, out: Path, question: Path | None = None
) -> None:
    """Writes the model directory; `out` is whole or as it was. Other files in it (a model card) stay."""
    from speechgpt.model import whole_folder

    parts.check()
    config = ModelConfig(
        name=settings.name,
        profile=parts.vocabulary.profile,
        prefix=prefix,
        layer=parts.codebook.provenance.layer,
        decoding=settings.decoding,
        max_question_seconds=settings.max_question_seconds,
        plain_text=settings.plain_text,
        duration_scale=settings.duration_scale,
        single_turns=settings.single_turns,
        licence=settings.licence,
        provenance=_provenance(parts),
    )
    if out.is_dir() and any(out.iterdir()) and not (out / MODEL_FILE).exists():
        raise ValueError(f"{out}: is not empty and holds no model; give another --out")
    with whole_folder(out) as folder:
        if out.is_dir():
            shutil.copytree(out, folder, dirs_exist_ok=True)
        for part in ("encoder", "llm", "vocoder"):
            shutil.rmtree(folder / part, ignore_errors=True)
        parts.save(folder, settings.half)
        if question is not None:
            shutil.copyfile(question, folder / "question.wav")
        write_json(folder / MODEL_FILE, asdict(config))


def _provenance(parts: Parts) -> dict[str, Any]:
    """What each part knows of itself, without paths of the machine that made it."""
    found = {
        "encoder": {"fingerprint": parts.encoder.fingerprint},
        "codebook": asdict(parts.codebook.provenance) | {"k": parts.codebook.size},
        "llm": {"parameters": parts.llm.num_parameters(), "vocabulary": parts.vocabulary.size},
        "vocoder": {"parameters": sum(p.numel() for p in parts.vocoder.parameters())},
    }
    done = parts.paths["llm"] / "done.json"
    if done.is_file():
        found["llm"]["identity"] = read_json(done).get("identity", "")
    return found


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each part of a model directory, and of all."""
    found: dict[str, int] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).parts[0]
        found[name] = found.get(name, 0) + path.stat().st_size
    return found | {"all": sum(found.values())}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="speechgpt assemble", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--config", type=Path, required=True, help="model.yaml: name, licence, decoding, limits, half")
    add("--encoder", type=named_path, required=True, help="encoder folder")
    add("--codebook", type=Path, required=True, help="codebook.safetensors")
    add("--llm", type=named_path, required=True, help="language model folder, adapters merged")
    add("--vocoder", type=Path, required=True, help="vocoder folder")
    add("--stage-config", type=Path, help="the last stage's yaml, whose `prefix` the model goes on using")
    add("--question", type=Path, help="a wav for `speechgpt demo`")
    add("--out", type=Path, required=True, help="model directory to write")
    args = parser.parse_args(argv)
    from speechgpt.generate import Decoding

    settings = ModelSettings.load(args.config)
    Decoding.from_dict(settings.decoding)  # refuses what the generator would refuse at every start
    prefix = StageConfig.load(args.stage_config).prefix if args.stage_config else ""
    paths = {name: getattr(args, name) for name in ("encoder", "codebook", "llm", "vocoder")}
    assemble(Parts.load(paths), settings, prefix, args.out, args.question)
    for name, size in sizes(args.out).items():
        print(f"{name:<22}{size / MEGABYTE:8.2f} MB")
    return 0
