"""What units say about words: the error rates of a small recogniser that is trained on nothing but them.

A CTC recogniser (Graves et al. 2006) of about 3 million parameters learns characters from deduplicated units
of split train and is read greedily on dev and test. Durations are left out, as the language model never sees
them. What it cannot hear, no model on top of these units will.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from tqdm import tqdm

from speechgpt.data.rows import UnitRow
from speechgpt.data.text_normal import normalise
from speechgpt.units.devices import choose_device
from speechgpt.units.edits import edit_distance

CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"  # all that `normalise` leaves; number 0 is CTC's blank
NUMBERS = {character: number for number, character in enumerate(CHARACTERS, 1)}
FRAMES_PER_UNIT = 2  # about 20 units a second are fewer than characters and the blanks between equal ones
WARM_UP = 0.05  # share of the training
LOG_EVERY = 100  # steps
BATCH_UNITS = {"cpu": 1024, "cuda": 16_384}  # padded, a batch


@dataclass
class ProbeConfig:
    steps: int = 4000
    minutes: float | None = None  # at most; where it ends training first, figures depend on the machine
    batch_units: int | None = None  # padded units a step; None: by device
    width: int = 256
    dropout: float = 0.2
    learning_rate: float = 2e-3  # the highest
    clip: float = 1.0  # norm of the gradient
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: {self.steps}, expected 1 or more")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes: {self.minutes}, expected more than 0")


@dataclass(frozen=True)
class Example:
    corpus: str
    split: str
    units: Tensor  # (U,) int64
    text: str  # normalised
    characters: Tensor  # (L,) int64, from 1

    def fits(self) -> bool:
        """Whether CTC has frames enough: one a character, and a blank between equal neighbours."""
        doubled = sum(a == b for a, b in zip(self.text, self.text[1:], strict=False))
        return FRAMES_PER_UNIT * len(self.units) >= len(self.text) + doubled


@dataclass
class Errors:
    rows: int = 0
    words: int = 0  # of the references
    word_errors: int = 0
    characters: int = 0
    character_errors: int = 0

    def add(self, reference: str, heard: str) -> None:
        self.rows += 1
        self.words += len(reference.split())
        self.word_errors += edit_distance(reference.split(), heard.split())
        self.characters += len(reference)
        self.character_errors += edit_distance(reference, heard)

    def rates(self) -> dict:
        return {
            "rows": self.rows,
            "words": self.words,
            "wer": self.word_errors / self.words,
            "cer": self.character_errors / self.characters,
        }


class Recogniser(nn.Module):
    """Units (B, U) to log-probabilities (B, 2 U, C) of the blank and the characters."""

    def __init__(self, k: int, width: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(k + 1, width, padding_idx=k)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.lstm = nn.LSTM(width, width, 2, batch_first=True, bidirectional=True, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(2 * width, FRAMES_PER_UNIT * (len(CHARACTERS) + 1))
        self.padding = k

    def forward(self, units: Tensor, lengths: Tensor) -> Tensor:
        """units (B, U) padded with K; lengths (B,) on the CPU."""
        inside = (units != self.padding)[..., None]  # B U 1
        hidden = self.dropout(self.embedding(units))  # B U D
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            # Padding stays zero, so that a row's output is the same in any batch.
            step = functional.gelu(convolution((norm(hidden) * inside).transpose(1, 2))).transpose(1, 2)
            hidden = hidden + self.dropout(step)  # B U D
        packed = pack_padded_sequence(hidden, lengths, batch_first=True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)  # B U 2D
        scores = self.out(self.dropout(hidden))  # B U 2C
        return scores.view(len(units), FRAMES_PER_UNIT * units.shape[1], -1).float().log_softmax(-1)  # B 2U C


def examples_of(rows: Sequence[UnitRow]) -> list[Example]:
    """Rows that have units and a text."""
    found = []
    for row in rows:
        text = normalise(row.text)
        if text and row.units:
            numbers = torch.tensor([NUMBERS[character] for character in text])
            found.append(Example(row.corpus, row.split, torch.tensor(row.units), text, numbers))
    return found


def batches(lengths: np.ndarray, budget: int, generator: np.random.Generator | None) -> list[np.ndarray]:
    """Indices in batches of like lengths, about `budget` padded units each; shuffled by a generator."""
    noise = generator.uniform(0.8, 1.2, len(lengths)) if generator is not None else 1.0
    found: list[list[int]] = []
    longest = 0
    for index in np.argsort(lengths * noise, kind="stable"):
        longest = max(longest, lengths[index])
        if not found or longest * (len(found[-1]) + 1) > budget:
            found.append([])
            longest = lengths[index]
        found[-1].append(index)
    order = generator.permutation(len(found)) if generator is not None else range(len(found))
    return [np.array(found[i]) for i in order]


def padded(model: Recogniser, members: list[Example], device: torch.device) -> tuple[Tensor, Tensor]:
    """units (B, U) on the device and lengths (B,) on the CPU."""
    lengths = torch.tensor([len(example.units) for example in members])
    units = pad_sequence([e.units for e in members], batch_first=True, padding_value=model.padding)
    return units.to(device), lengths


def ctc_loss(model: Recogniser, members: list[Example], device: torch.device) -> Tensor:
    """() nats a character."""
    units, lengths = padded(model, members, device)
    sizes = torch.tensor([len(example.characters) for example in members])
    characters = torch.cat([example.characters for example in members]).to(device)
    scores = model(units, lengths).transpose(0, 1)  # 2U B C
    total = functional.ctc_loss(
        scores, characters, (FRAMES_PER_UNIT * lengths).to(device), sizes.to(device), reduction="sum"
    )
    return total / len(characters)


def train(
    examples: list[Example], k: int, config: ProbeConfig, device: torch.device
) -> tuple[Recogniser, dict]:
    """The trained model, and how its training went. Stops on a loss that is not finite, naming the step."""
    torch.manual_seed(config.seed)
    generator = np.random.default_rng(config.seed)
    model = Recogniser(k, config.width, config.dropout).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, betas=(0.9, 0.98))
    lengths = np.array([len(example.units) for example in examples])
    budget = config.batch_units or BATCH_UNITS[device.type]
    queue: list[np.ndarray] = []
    begun, step, losses = time.monotonic(), 0, []
    with tqdm(total=config.steps, desc="ctc", disable=None) as bar:
        while step < config.steps:
            minutes = (time.monotonic() - begun) / 60
            done = max(step / config.steps, minutes / config.minutes if config.minutes else 0.0)
            if done >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = (
                    config.learning_rate * min(1.0, (done + 1 / config.steps) / WARM_UP) * (1 - done)
                )
            queue = queue or batches(lengths, budget, generator)
            step += 1
            loss = ctc_loss(model, [examples[i] for i in queue.pop()], device)
            value = float(loss.detach())
            if not np.isfinite(value):
                raise ValueError(f"CTC: the loss is {value} at step {step}; a lower learning rate may help")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            losses.append(value)
            bar.update()
            if step % LOG_EVERY == 0:
                minutes = (time.monotonic() - begun) / 60
                recent = np.mean(losses[-LOG_EVERY:])
                print(f"ctc step {step} loss {recent:.4f} minutes {minutes:.2f}", file=sys.stderr)
    return model.eval(), {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": step,
        "minutes": (time.monotonic() - begun) / 60,
        "first_loss": losses[0],
        "last_loss": float(np.mean(losses[-LOG_EVERY:])),  # nats a character
    }


@torch.no_grad()
def transcribe(model: Recogniser, examples: list[Example], device: torch.device) -> list[str]:
    """The greedy reading of each: the best of each frame, repeats merged, blanks dropped."""
    found = [""] * len(examples)
    lengths = np.array([len(example.units) for example in examples])
    for batch in batches(lengths, BATCH_UNITS[device.type], None):
        units, sizes = padded(model, [examples[i] for i in batch], device)
        best = model(units, sizes).argmax(-1).cpu().numpy()  # B 2U
        for index, numbers, size in zip(batch, best, sizes.tolist(), strict=True):
            numbers = numbers[: FRAMES_PER_UNIT * size]
            kept = numbers[np.diff(numbers, prepend=0) != 0]
            found[index] = "".join(CHARACTERS[number - 1] for number in kept if number)
    return found


def word_error_rates(rows: Sequence[UnitRow], k: int, config: ProbeConfig, device: str = "auto") -> dict:
    """Trains on split train; word and character error rates of dev and test, over all and by corpus."""
    examples = examples_of(rows)
    learnt = [example for example in examples if example.split == "train" and example.fits()]
    held = [example for example in examples if example.split != "train"]
    if not learnt or not held:
        raise ValueError(
            f"the recogniser needs rows with text: found {len(learnt)} of split train and {len(held)} of dev "
            "and test; `speechgpt split` holds rows back"
        )
    where = choose_device(device)
    model, training = train(learnt, k, config, where)
    errors: dict[str, dict[str, Errors]] = defaultdict(lambda: defaultdict(Errors))
    for example, heard in zip(held, transcribe(model, held, where), strict=True):
        for corpus in ("all", example.corpus):
            errors[corpus][example.split].add(example.text, heard)
    return {
        "all": {split: found.rates() for split, found in sorted(errors.pop("all").items())},
        "corpora": {
            corpus: {split: found.rates() for split, found in sorted(splits.items())}
            for corpus, splits in sorted(errors.items())
        },
        "train_rows": len(learnt),
        "train_rows_too_short": sum(e.split == "train" for e in examples) - len(learnt),
        "training": training,
        "config": asdict(config),
    }
