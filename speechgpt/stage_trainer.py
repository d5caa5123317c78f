"""The transformers Trainer with what the stages need besides: packs, or batches of like length, a schedule
that can follow the clock, a stop before an update that is not finite, exact dev loss, and whole checkpoints.
"""

import math
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from speechgpt.batches import (
    IGNORED,
    BatchLoader,
    EpochBatches,
    LengthBatches,
    NoisyRows,
    TextNoise,
    TokenRows,
    UnitNoise,
    collate,
)
from speechgpt.packed_model import learn_from_packs
from speechgpt.packs import PackedBatches, collate_pack
from speechgpt.stage_callbacks import Checkpoints, Guard, Progress, TrainingClock
from speechgpt.stages import StageConfig
from speechgpt.vocabulary import Vocabulary

# Processes without CUDA are on "cpu:0", "cpu:1", ..., where torch.load cannot put a checkpoint by itself.
ANY_CPU_PRIORITY = 1000
torch.serialization.register_package(
    ANY_CPU_PRIORITY, lambda _: None, lambda storage, place: storage if place.startswith("cpu:") else None
)
MAX_PERPLEXITY = 1e9  # shown instead of infinity, which JSON lacks


class StageTrainer(Trainer):
    """Trains one stage. `seconds` is the time that the run has trained before this start."""

    def __init__(
        self,
        model,
        args: TrainingArguments,
        config: StageConfig,
        vocabulary: Vocabulary,
        train: TokenRows,
        dev: TokenRows | None,
        seconds: float = 0.0,
    ):
        self.stage = config
        self.vocabulary = vocabulary
        self.clock = TrainingClock(seconds)
        self.progress = 0.0  # of the time budget, 0 to 1, the same in every process
        self.step_loss: torch.Tensor | None = None  # sum over the micro-batches of this step
        self.step_norm: torch.Tensor | float | None = None
        if config.packed:
            learn_from_packs(model, config.compiled and args.device.type == "cuda" and not args.fsdp)
        super().__init__(
            model=model,
            args=args,
            data_collator=partial(collate, pad_id=vocabulary.pad_id),
            train_dataset=train,
            eval_dataset=dev,
            callbacks=[Guard(self), Checkpoints(self), Progress(self)],
        )
        self.remove_callback(PrinterCallback)  # prints dicts to standard output

    def get_train_dataloader(self) -> BatchLoader:
        # Every process draws its own share of the same plan, so accelerate has nothing to split.
        stage, rows = self.stage, self.train_dataset
        place = {"seed": stage.seed, "rank": self.args.process_index, "world": self.args.world_size}
        joined = self.data_collator
        if stage.packed:
            batches = PackedBatches(rows.lengths, stage.batch_tokens, **place)
            longest = int(rows.lengths.max())
            joined = partial(
                collate_pack, pad_id=self.vocabulary.pad_id, tokens=stage.batch_tokens, longest=longest
            )
        else:
            per_batch = self.args.per_device_train_batch_size
            batches = LengthBatches(rows.lengths, per_batch, stage.batch_tokens, **place)
        if stage.unit_noise or stage.text_noise:
            names = self.vocabulary
            noise = UnitNoise(stage.unit_noise, names.base_size, names.num_units)
            first = 1 + max(names.bos_id, names.eos_id)
            text = TextNoise(stage.text_noise, first, noise) if stage.text_noise else None
            rows, batches = NoisyRows(rows, noise, stage.seed, text), EpochBatches(batches)
        return self._loader(rows, batches, joined, self.args.dataloader_num_workers)

    def _loader(self, rows, batches, joined, workers: int) -> BatchLoader:
        return BatchLoader(
            rows,
            batch_sampler=batches,
            collate_fn=joined,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=(self.args.dataloader_prefetch_factor or 4) if workers else None,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """With a time budget the schedule follows whichever is further on, the steps or the clock."""
        if not self.stage.max_minutes:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            warmup = self.args.get_warmup_steps(num_training_steps)
            warm_share = self.args.warmup_steps if self.args.warmup_steps < 1 else 0.0
            shape = decay_shape(str(self.args.lr_scheduler_type.value))

            def factor(step: int) -> float:
                done = max(step / num_training_steps, self.progress)
                warm = done / warm_share if warm_share else (step + 1) / max(1, warmup)
                return min(1.0, warm) * shape(done) if warm_share or warmup else shape(done)

            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.step_loss = loss if self.step_loss is None else self.step_loss + loss
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        self.step_norm = super()._get_grad_norm(model, grad_norm)
        return self.step_norm

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Dev loss a supervised token, exact over all processes, and perplexities of units and of text."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if rows is None:
            raise ValueError("there are no dev rows to evaluate on: give --dev, or rows of the split dev")
        with torch.compiler.set_stance("force_eager"):  # few batches, of many shapes
            sums = self._dev_sums(rows)
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in dev_metrics(sums, rows.kinds).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _dev_sums(self, rows: TokenRows) -> np.ndarray:
        """(kinds, 2, 2): loss and tokens, of text and of units, for each kind of row."""
        device = self.args.device
        world, rank = self.args.world_size, self.args.process_index
        per_batch, tokens = self.args.per_device_eval_batch_size, self.stage.batch_tokens
        plan = LengthBatches(rows.lengths, per_batch, tokens, rank=rank, world=world, shuffle=False)
        loader = self._loader(rows, plan, self.data_collator, workers=0)  # dev rows are few
        row_lists = list(plan)
        total = len(plan.plan())
        sums = torch.zeros(len(rows.kinds) * 2, 2, dtype=torch.float64, device=device)
        first, last = self.vocabulary.base_size, self.vocabulary.base_size + self.vocabulary.num_units
        self.model.eval()
        for step, (batch, numbers) in enumerate(zip(loader, row_lists, strict=True)):
            ids, labels = batch["input_ids"].to(device), batch["labels"].to(device)[:, 1:]
            logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1]  # B L-1 V
            losses = F.cross_entropy(
                logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
            )  # B*(L-1)
            if step * world + rank >= total:  # a batch dealt twice, so that all processes have as many
                continue
            kinds = torch.from_numpy(rows.kind[numbers].astype(np.int64)).to(device)[:, None]  # B 1
            is_unit = (labels >= first) & (labels < last)  # B L-1
            cell = (kinds * 2 + is_unit).flatten()
            counted = (labels != IGNORED).flatten()
            sums[:, 0].index_add_(0, cell, losses.double() * counted)
            sums[:, 1].index_add_(0, cell, counted.double())
        if world > 1:
            dist.all_reduce(sums)
        return sums.view(len(rows.kinds), 2, 2).cpu().numpy()


def dev_metrics(sums: np.ndarray, kinds: tuple[str, ...]) -> dict[str, float]:
    """From (kinds, 2, 2) sums: the loss, perplexities of text and units, and the loss of each kind of row."""

    def mean(cells: np.ndarray) -> float:
        loss, tokens = cells.reshape(-1, 2).sum(axis=0)
        return float(loss / tokens)

    def perplexity(cells: np.ndarray) -> float:
        return min(MAX_PERPLEXITY, math.exp(min(50.0, mean(cells))))

    metrics = {"loss": mean(sums)}
    for name, part in (("text_perplexity", sums[:, 0]), ("unit_perplexity", sums[:, 1])):
        if part[:, 1].sum():
            metrics[name] = perplexity(part)
    for kind, part in zip(kinds, sums, strict=True):
        if part[:, 1].sum():
            metrics[f"loss_{kind}"] = mean(part)
    metrics["tokens"] = float(sums[:, :, 1].sum())
    return metrics


def decay_shape(name: str):
    """Share of the learning rate that is left when `done` (0 to 1) of the run is over."""
    shapes = {
        "linear": lambda done: max(0.0, 1 - done),
        "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * min(1.0, done))),
        "constant": lambda done: 1.0,
        "constant_with_warmup": lambda done: 1.0,
    }
    if name not in shapes:
        raise ValueError(f"lr_scheduler_type {name} has no form for max_minutes; known: {', '.join(shapes)}")
    return shapes[name]
