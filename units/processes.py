"""This process among those that torchrun started; alone without it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from speechgpt.units.devices import choose_device

# While the first process fits clusters. Where one is killed, torchrun ends those that wait for it.
PATIENCE = timedelta(hours=1)


@dataclass
class World:
    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str) -> "World":
        """Joins the group that torchrun's environment describes, each process on its own GPU."""
        chosen, size = choose_device(device), int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(0, 1, chosen)
        if chosen.type == "cuda":
            chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(chosen)
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=PATIENCE)
        return cls(int(os.environ["RANK"]), size, chosen)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.size > 1:
            distributed.barrier()

    def agree(self, value: float) -> float:
        """The first process's value, everywhere."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        distributed.broadcast(shared, 0)
        return float(shared)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, every process works for itself; none goes on before all have done, and where one raises
        ValueError or OSError, all raise ValueError with the words of the first."""
        issue = ""
        try:
            yield
        except (ValueError, OSError) as error:
            if self.size == 1:
                raise
            issue = str(error)
        if self.size > 1:
            issues = [""] * self.size
            distributed.all_gather_object(issues, issue)
            if any(issues):
                raise ValueError(next(filter(None, issues)))

    def sum(self, values: Tensor) -> Tensor:
        """The sum of all processes' tensors of one shape, everywhere; NCCL knows no int16."""
        if self.size == 1:
            return values
        shared = values.to(self.device, copy=True)
        distributed.all_reduce(shared)
        return shared.to(values.device)

    def say(self, message: str) -> None:
        """One line on standard error, from the first process alone."""
        if self.first:
            print(message, file=sys.stderr, flush=True)

    def leave(self) -> None:
        if self.size > 1 and distributed.is_initialized():
            distributed.destroy_process_group()
