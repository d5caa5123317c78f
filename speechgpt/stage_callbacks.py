"""What goes on around a stage's steps: the time used up, the stop before a bad update, whole checkpoints, and
what is shown."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from tqdm import tqdm
from transformers import TrainerCallback

from speechgpt.data.files import write_json

if TYPE_CHECKING:
    from speechgpt.stage_trainer import StageTrainer


class TrainingClock:
    """Seconds of training, over all starts of a run."""

    def __init__(self, before: float):
        self.before = before
        self.started: float | None = None

    def start(self) -> None:
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.before + (time.monotonic() - self.started if self.started is not None else 0.0)


class Guard(TrainerCallback):
    """Before each update: stops if loss or gradient are not finite, and agrees on the time used up."""

    def __init__(self, trainer: "StageTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **_) -> None:
        self.trainer.clock.start()

    def on_pre_optimizer_step(self, args, state, control, **_) -> None:
        trainer = self.trainer
        loss, norm = trainer.step_loss, trainer.step_norm
        trainer.step_loss = None
        report = torch.zeros(2, dtype=torch.float64, device=args.device)  # processes in trouble, seconds
        report[0] = ~torch.isfinite(loss).all()
        if norm is not None and trainer.accelerator.scaler is None:  # a scaler skips such steps by itself
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else torch.as_tensor(norm)
            report[0] += ~torch.isfinite(norm.to(args.device)).all()
        if args.process_index == 0:
            report[1] = trainer.clock.seconds
        if args.world_size > 1:
            dist.all_reduce(report)
        trouble, seconds = report.tolist()
        if trouble:
            raise ValueError(
                f"step {state.global_step + 1}: the loss is {float(loss)}, the gradient norm {float(norm)}; "
                "stopped before the update. Look at the rows or lower trainer.learning_rate; "
                "the same command goes on from the last checkpoint"
            )
        if trainer.stage.max_minutes:
            trainer.progress = min(1.0, seconds / (60 * trainer.stage.max_minutes))

    def on_step_end(self, args, state, control, **_):
        if self.trainer.progress >= 1:
            control.should_training_stop = True
        return control


class Checkpoints(TrainerCallback):
    """Marks a checkpoint as whole once every process has written its part."""

    def __init__(self, trainer: "StageTrainer"):
        self.trainer = trainer

    def on_save(self, args, state, control, **_) -> None:
        if args.world_size > 1:
            dist.barrier()
        if args.process_index == 0:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(
                folder / "complete.json", {"step": state.global_step, "seconds": self.trainer.clock.seconds}
            )


class Progress(TrainerCallback):
    """A progress bar and one line a log entry, on standard error, from the first process."""

    def __init__(self, trainer: "StageTrainer"):
        self.trainer = trainer
        self.bar: tqdm | None = None

    def on_train_begin(self, args, state, control, **_) -> None:
        if state.is_world_process_zero:
            total = None if self.trainer.stage.max_minutes else state.max_steps
            self.bar = tqdm(total=total, initial=state.global_step, desc="steps", disable=None)

    def on_step_end(self, args, state, control, **_) -> None:
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, args, state, control, logs=None, **_) -> None:
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            shown = "  ".join(f"{k} {v:.4g}" for k, v in logs.items() if isinstance(v, int | float))
            timed = self.trainer.stage.max_minutes > 0
            place = f"{self.trainer.progress:.0%} of the time" if timed else f"of {state.max_steps}"
            tqdm.write(f"step {state.global_step} {place}  {shown}", file=sys.stderr)

    def on_train_end(self, args, state, control, **_) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
