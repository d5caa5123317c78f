"""A training stage as a config, and the folder that a run of it leaves behind. Imports no torch.

A run's folder holds `run.json` (identity and resolved config, written first), `checkpoints/`, perhaps
`rejects.jsonl`, and in the end the model and `done.json`. The identity is a hash over the config, the rows,
and the model that the stage starts from: over contents, never over names.
"""

import difflib
import hashlib
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from speechgpt.data.files import read_json, write_json
from speechgpt.data.published import PREFIX
from speechgpt.data.settings import load_settings, settings_from

STAGES = (1, 2, 3)
# A run is known by its settings as they are written, so that 1 stays another number than 1.0.
Number = int | float
SMALL_FILE = 256 << 20  # bytes: larger files are hashed at samples, or a 7B start would read 13 GB
SAMPLES, SAMPLE_BYTES = 64, 1 << 20
# Settings of the trainer that change what is shown or kept, not what is learned.
COSMETIC = (
    "logging_steps logging_strategy logging_first_step save_steps save_strategy save_total_limit report_to "
    "run_name eval_steps eval_strategy dataloader_num_workers dataloader_prefetch_factor"
).split()
# Settings that came later, with the value that does what was done before there were any: a run that has this
# value is the run that it was without the setting, and needs no second training.
LATER = {"packed": False, "compiled": False, "text_noise": 0.0}
# Settings that this package decides itself.
RESERVED = {
    "output_dir": "--out",
    "seed": "seed",
    "data_seed": "seed",
    "resume_from_checkpoint": "nothing, a run always goes on from its last checkpoint",
    "train_sampling_strategy": "packed",
    "disable_tqdm": "nothing, progress goes to standard error",
    "save_only_model": "nothing, a run must be able to go on",
    "push_to_hub": "nothing, nothing is ever uploaded",
    "load_best_model_at_end": "nothing, the last weights are kept",
    "logging_nan_inf_filter": "nothing, a loss that is not finite stops the run",
}


@dataclass
class LoraSettings:
    """Low-rank adaptation: the base stays frozen, but for the rows of units and markers."""

    r: int = 8  # rank
    alpha: int = 16  # the update is scaled by alpha / r
    dropout: float = 0.05
    targets: list = field(default_factory=lambda: ["q_proj", "v_proj"])  # module names, or [all-linear]
    train_new_rows: bool = True  # also train the embedding and head rows of units and markers


@dataclass
class StageConfig:
    """One stage. The rows say what they are; `stage` says how they are laid out for training."""

    stage: int  # 1: rows packed into blocks; 2: loss on the answer alone; 3: the same on a chain of modality
    max_length: int  # tokens: of a block (stage 1), or of the longest row (longer ones are rejected)
    prefix: str = ""  # system text before every turn, a property of the model; "published": that one
    batch_tokens: int = 0  # tokens a batch and device; 0: trainer.per_device_train_batch_size rows
    packed: bool = False  # rows end to end in packs of batch_tokens, each attending to itself; false: padded
    compiled: bool = False  # decoder layers by torch.compile, on CUDA and without fsdp; wants packed
    max_bad: int = 0  # rejected rows that are tolerated
    max_minutes: Number = 0.0  # wall-clock time that the schedule must fit, whatever the steps; 0: no limit
    mix: Number | None = None  # share of the training rows drawn from the --mix files; null: all their rows
    repeat: dict = field(default_factory=dict)  # kind of row -> times in an epoch (0.5: every other)
    # In training, without loss:
    unit_noise: Number = 0.0  # share of the units heard that are replaced at random
    text_noise: Number = 0.0  # share of the text tokens, after heard units, that go wrong
    dev_rows: int = 2000  # at most so many rows measure the dev loss
    dtype: str = "float32"  # of the weights in memory; bfloat16 only makes sense for a frozen base (LoRA)
    lora: dict = field(default_factory=dict)  # fields of LoraSettings; empty: all weights are trained
    seed: int = 1
    trainer: dict = field(default_factory=dict)  # transformers.TrainingArguments; bf16, tf32: also "auto"

    def __post_init__(self) -> None:
        """Raises one ValueError that lists everything that is wrong."""
        if self.prefix == "published":
            self.prefix = PREFIX
        wrong = []
        if self.stage not in STAGES:
            wrong.append(f"stage is {self.stage}; expected 1, 2 or 3")
        if self.max_length < 8:
            wrong.append(f"max_length is {self.max_length}; expected at least 8 tokens")
        if self.packed and self.batch_tokens < 8:
            wrong.append(f"batch_tokens is {self.batch_tokens}; packed rows want the tokens of a pack")
        if self.compiled and not self.packed:
            wrong.append("compiled wants packed: padded batches have too many shapes")
        if self.mix is not None and not 0 <= self.mix < 1:
            wrong.append(f"mix is {self.mix}; expected a share from 0 to below 1")
        for name in ("unit_noise", "text_noise"):
            if not 0 <= getattr(self, name) < 1:
                wrong.append(f"{name} is {getattr(self, name)}; expected a share from 0 to below 1")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            wrong.append(f"dtype is {self.dtype!r}; expected float32, bfloat16 or float16")
        try:
            settings_from(LoraSettings, self.lora, "lora")
        except ValueError as error:
            wrong.append(str(error))
        for name in sorted(set(self.trainer) & set(RESERVED)):
            wrong.append(f"trainer.{name} is decided by {RESERVED[name]}")
        limit = self.trainer.get("save_total_limit")
        if isinstance(limit, int | float) and limit < 2:
            wrong.append("trainer.save_total_limit under 2: a kill while saving would leave none")
        if wrong:
            raise ValueError("; ".join(wrong))

    @classmethod
    def load(cls, path: str | Path) -> "StageConfig":
        return load_settings(cls, path)

    @property
    def lora_settings(self) -> LoraSettings | None:
        return settings_from(LoraSettings, self.lora, "lora") if self.lora else None


def check_trainer_keys(given: dict, known: list[str], where: str | Path) -> None:
    """Raises ValueError for a key that transformers.TrainingArguments lacks, with its nearest names."""
    for name in given:
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known, n=4, cutoff=0.4)) or "none"
            raise ValueError(
                f"{where}: unknown setting trainer.{name}; near names: {near}; "
                f"known are the {len(known)} of transformers.TrainingArguments"
            )


def fingerprint(path: Path) -> str:
    """sha256 of a file's content; large files are sampled at fixed places."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    digest.update(str(size).encode())
    with open(path, "rb") as file:
        if size <= SMALL_FILE:
            while block := file.read(SAMPLE_BYTES):
                digest.update(block)
        else:
            for i in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def model_fingerprint(folder: str | Path) -> str:
    """One hash over the weights, the config and the vocabulary of a model folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such model folder; `speechgpt init-lm` makes one")
    names = [p for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".bin", ".json", ".model")]
    names = [p for p in names if p.name not in ("run.json", "done.json")]
    return _digest({p.name: fingerprint(p) for p in names})


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass
class Run:
    """A run's folder and identity."""

    out: Path
    identity: str  # sha256 over all that decides the result
    record: dict  # what run.json holds

    @classmethod
    def describe(
        cls, config: StageConfig, model: Path, data: list[Path], mix: list[Path], dev: list[Path], out: Path
    ) -> "Run":
        settings = asdict(config)
        learned = {k: v for k, v in settings.items() if k not in LATER or v != LATER[k]}
        learned["trainer"] = {k: v for k, v in config.trainer.items() if k not in COSMETIC}
        for path in (*data, *mix, *dev):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file of rows")
        parts = {
            "config": learned,
            "model": model_fingerprint(model),
            "data": [fingerprint(p) for p in data],
            "mix": [fingerprint(p) for p in mix],
            "dev": [fingerprint(p) for p in dev],
        }
        return cls(out, _digest(parts), {"identity": _digest(parts), "config": settings, "inputs": parts})

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"

    def finished(self) -> dict | None:
        """What done.json says, if this very run has ended."""
        done = self.out / "done.json"
        if done.is_file() and (found := read_json(done)).get("identity") == self.identity:
            return found
        return None

    def begin(self) -> None:
        """Makes the folder this run's own: an earlier run of other identity is moved aside, not lost."""
        marker = self.out / "run.json"
        if marker.is_file():
            earlier = read_json(marker).get("identity", "")
            if earlier == self.identity:
                return
            aside = self.out / f"superseded-{earlier[:8]}"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            for entry in sorted(self.out.iterdir()):
                if not entry.name.startswith("superseded-"):
                    os.replace(entry, aside / entry.name)
            print(f"{self.out}: its inputs changed; the earlier run is now in {aside}", file=sys.stderr)
        elif any(self.out.glob("*.safetensors")):
            raise ValueError(f"{self.out}: holds a model that no stage wrote; give another --out")
        write_json(marker, self.record)

    def last_checkpoint(self) -> tuple[Path, float] | None:
        """The newest whole checkpoint and its seconds of training; others have no complete.json."""
        whole = [p.parent for p in self.checkpoints.glob("checkpoint-*/complete.json")]
        if not whole:
            return None
        last = max(whole, key=lambda p: int(p.name.split("-")[1]))
        return last, float(read_json(last / "complete.json")["seconds"])

    def drop_partial_checkpoints(self) -> None:
        """Removes what a kill left half-written."""
        for folder in self.checkpoints.glob("checkpoint-*"):
            if not (folder / "complete.json").is_file():
                shutil.rmtree(folder)

    def publish(self, staging: Path, done: dict) -> None:
        """Moves the model from `staging` into place, writes done.json last and drops the scaffolding."""
        for entry in sorted(staging.iterdir()):
            entry.chmod(0o755 if entry.is_dir() else 0o644)  # safetensors makes its files private
            os.replace(entry, self.out / entry.name)
        staging.rmdir()
        write_json(self.out / "done.json", {"identity": self.identity} | done)
        for folder in (self.checkpoints, self.out / "rendered"):
            shutil.rmtree(folder, ignore_errors=True)
