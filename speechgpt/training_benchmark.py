"""Answer tokens a second in training: packs beside the released way, on rows of the published lengths.

The released way: 16 rows a batch as they come, cut at 512 tokens, padded to the longest, the logits of every
place, layer by layer without compilation, weights updated after as many rows. Both ways have the same model
of random weights, bfloat16 products (7B: weights too; 1B: float32 weights under autocast), fused AdamW and
clipping, and learn the rows of units and markers beside an adapter. Whole rows are packed, none is cut; what
counts is the supervised tokens that a way trains on.

The limit is the time that the useful floating-point operations take at the machine's measured matrix rate:
6 N T for N weights of the layers' matrices and T tokens (4 N T where they are frozen: no gradient of their
own), 6 V D M for a head of V rows of D on M supervised places, and 3 x 2 D l^2 a layer for each row of l
tokens (causal attention, forward and backward). Padding, recomputation and the embedding count nothing.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from speechgpt.batches import collate
from speechgpt.data.measurement import Measurement, NotMeasuredError
from speechgpt.packed_model import learn_from_packs
from speechgpt.packs import collate_pack, fill_packs
from speechgpt.training_rows import PIECES, VOCABULARY, training_rows
from speechgpt.units.machine import Machine, seconds_of

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

RELEASED_ROWS, RELEASED_CUT = 16, 512  # rows a batch and device, tokens of the longest row
PAD = 0
Rows = list[tuple[np.ndarray, np.ndarray, int]]


@dataclass(frozen=True)
class Job:
    """A model and how it is trained."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate: int
    lora: bool
    packs: int  # an update
    tokens: int  # a pack
    released_checkpointing: bool  # whether the padded way must recompute activations to fit
    checkpointing: bool = False
    compiled: bool = True
    dropout: float = 0.0  # of attention
    speech: str = "published"  # lengths of rows, see training_rows
    repeats: int = 2

    @property
    def weights(self) -> int:
        """N, of the layers' matrices."""
        grouped = self.hidden * self.key_value_heads // self.heads
        return self.layers * self.hidden * (2 * self.hidden + 2 * grouped + 3 * self.intermediate)


JOBS = {
    "1B full": Job(2048, 22, 32, 4, 5632, False, packs=4, tokens=16_384, released_checkpointing=False),
    "7B LoRA": Job(4096, 32, 32, 32, 11_008, True, packs=3, tokens=8192, released_checkpointing=True),
    "mini": Job(256, 8, 4, 4, 704, False, packs=4, tokens=8192, released_checkpointing=False, dropout=0.1),
}
TOY = {"hidden": 32, "layers": 2, "intermediate": 48, "heads": 4, "key_value_heads": 2, "packs": 2,
       "tokens": 1024, "compiled": False, "repeats": 1}  # fmt: skip


def useful_flops(job: Job, rows: Rows) -> float:
    """Floating-point operations of training on these rows once, as in the module's words."""
    lengths = np.array([len(ids) for ids, _, _ in rows], dtype=np.float64)
    supervised = sum(int(mask[1:].sum()) for _, mask, _ in rows)
    per_weight = 4 if job.lora else 6
    attention = 3 * 2 * job.hidden * job.layers * float((lengths**2).sum())
    head = 6 * VOCABULARY * job.hidden * supervised
    return per_weight * job.weights * float(lengths.sum()) + head + attention


def make_model(job: Job, device: torch.device) -> "LlamaForCausalLM":
    """Random weights, drawn on the device; with `lora` an adapter as published on them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=job.hidden, num_hidden_layers=job.layers,
        num_attention_heads=job.heads, num_key_value_heads=job.key_value_heads,
        intermediate_size=job.intermediate, max_position_embeddings=2048, pad_token_id=PAD,
        tie_word_embeddings=False, attention_dropout=job.dropout, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    with device:
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16 if job.lora else torch.float32)
    if job.lora:
        from peft import LoraConfig, get_peft_model

        new = list(range(PIECES, VOCABULARY))
        model = get_peft_model(model, LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM",
            trainable_token_indices={"embed_tokens": new, "lm_head": new},
        ))  # fmt: skip
    return model.train()


def released_batches(rows: Rows) -> list[dict[str, torch.Tensor]]:
    """16 rows a batch, cut and padded."""
    cut = [tuple(part[:RELEASED_CUT] for part in row[:2]) + row[2:] for row in rows]
    batches = []
    for start in range(0, len(cut), RELEASED_ROWS):
        batch = collate(cut[start : start + RELEASED_ROWS], PAD)
        batches.append(batch | {"attention_mask": (batch["input_ids"] != PAD).long()})
    return batches


def packed_rows(job: Job) -> tuple[Rows, list[dict[str, torch.Tensor | int]]]:
    """Rows that fill the packs of an update, and these packs."""
    drawn = training_rows(job.packs * job.tokens // 100 + 50, job.speech)
    lengths = np.array([len(ids) for ids, _, _ in drawn])
    chosen = fill_packs(lengths, np.arange(len(drawn)), job.tokens)[: job.packs]
    longest = int(lengths.max())
    packs = [collate_pack([drawn[i] for i in pack], PAD, job.tokens, longest) for pack in chosen]
    return [drawn[i] for i in sorted(np.concatenate(chosen))], packs


class Trainee:
    """A model with its optimizer; an update goes over all batches given."""

    def __init__(self, model: torch.nn.Module, device: torch.device):
        self.model, self.device = model, device
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-5, fused=True)

    def update(self, batches: list[dict]) -> torch.Tensor:
        """The loss, on the device."""
        count = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        total = torch.zeros((), device=self.device)
        for batch in batches:
            total += self.learn(batch, count)
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def learn(self, batch: dict, count: int) -> torch.Tensor:
        given = {
            name: value.to(self.device, non_blocking=True) if torch.is_tensor(value) else value
            for name, value in batch.items()
        }
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.model(**given, num_items_in_batch=count).loss
        loss.backward()
        return loss.detach()


def _checkpoint(model: torch.nn.Module, wanted: bool) -> None:
    if wanted:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()


def _peak(machine: Machine) -> str:
    if machine.kind != "cuda":
        return ""
    return f", {torch.cuda.max_memory_allocated(machine.device) / 2**30:.0f} GiB"


def measure(name: str, job: Job, machine: Machine, quick: bool, released: bool = True) -> Measurement:
    """One job, both ways; `released=False` leaves the released way out."""
    job = replace(job, **TOY) if quick else job
    rows, packs = packed_rows(job)
    trainee = Trainee(make_model(job, machine.device), machine.device)
    baseline, notes = None, []
    if released:
        batches = released_batches(rows)
        _checkpoint(trainee.model, job.released_checkpointing)
        seconds = seconds_of(partial(trainee.update, batches), machine, job.repeats, warmup=1)
        supervised = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        baseline = supervised / seconds
        places = sum(batch["labels"].numel() for batch in batches)
        notes.append(f"padded {places / seconds:,.0f} token/s{_peak(machine)}")
        trainee.optimizer.zero_grad()
        machine.forget()
    if machine.kind == "cuda":
        torch.cuda.reset_peak_memory_stats(machine.device)
    _checkpoint(trainee.model, job.checkpointing)
    learn_from_packs(trainee.model, job.compiled)
    seconds = seconds_of(partial(trainee.update, packs), machine, job.repeats, warmup=1)
    supervised = sum(int(mask[1:].sum()) for _, mask, _ in rows)
    tokens = sum(len(ids) for ids, _, _ in rows)
    notes.insert(0, f"packed {tokens / seconds:,.0f} token/s{_peak(machine)}")
    flops = useful_flops(job, rows)
    dtype = torch.bfloat16 if machine.kind == "cuda" else torch.float32
    rate = machine.matrix_flops(dtype)
    notes.append(f"{flops / seconds / 1e12:.3g} TFLOP/s useful, {len(rows)} rows an update")
    return Measurement(
        f"training, {name}, {job.speech} lengths", "answer token/s", baseline, supervised / seconds,
        limit=supervised * rate / flops, note="; ".join(notes),
    )  # fmt: skip


def _part(name: str, **changes) -> Callable[[Machine, bool], Iterator[Measurement]]:
    def part(machine: Machine, quick: bool) -> Iterator[Measurement]:
        if machine.kind != "cuda" and not quick:
            raise NotMeasuredError("a step of a billion weights takes minutes and 20 GB on a CPU")
        yield measure(name, replace(JOBS[name], **changes), machine, quick)

    return part


parts = {
    "training, 1B full": _part("1B full"),
    "training, 7B LoRA": _part("7B LoRA"),
}


def main(argv: list[str]) -> int:
    """`python -m speechgpt.training_benchmark`: one job in one variant."""
    parser = argparse.ArgumentParser(prog="python -m speechgpt.training_benchmark", description=main.__doc__)
    parser.add_argument("--job", choices=JOBS, default="1B full")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tokens", type=int, help="of a pack")
    parser.add_argument("--packs", type=int, help="of an update")
    parser.add_argument("--speech", choices=["published", "librispeech"], default="published")
    parser.add_argument("--eager", action="store_true", help="layers not compiled")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in packs too")
    parser.add_argument("--no-released", action="store_true", help="leave the released way out")
    parser.add_argument("--profile", action="store_true", help="also print the kernels of one update")
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    args = parser.parse_args(argv)
    from speechgpt.units.devices import choose_device, on_device

    changes = {name: getattr(args, name) for name in ("tokens", "packs") if getattr(args, name)}
    changes |= {"compiled": not args.eager, "checkpointing": args.checkpointing, "speech": args.speech}
    job = replace(JOBS[args.job], **changes)
    machine = Machine(choose_device(args.device), args.quick)
    with on_device(machine.device):
        found = measure(args.job, job, machine, args.quick, not args.no_released)
        print(found.to_dict())
        if args.profile:
            profile(job, machine, args.quick)
    return 0


def profile(job: Job, machine: Machine, quick: bool) -> None:
    """Prints the kernels of one update on packs that take longest."""
    from torch.profiler import ProfilerActivity

    job = replace(job, **TOY) if quick else job
    machine.forget()
    trainee = Trainee(make_model(job, machine.device), machine.device)
    _checkpoint(trainee.model, job.checkpointing)
    learn_from_packs(trainee.model, job.compiled)
    _, packs = packed_rows(job)
    trainee.update(packs)
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if machine.kind == "cuda" else [])
    with torch.profiler.profile(activities=kinds) as seen:
        trainee.update(packs)
        machine.synchronize()
    order = "self_device_time_total" if machine.kind == "cuda" else "self_cpu_time_total"
    print(seen.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=90))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
