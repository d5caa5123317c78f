"""How a training step's time and memory grow with the tokens of a pack and with the length of its rows."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from speechgpt.data.measurement import Growth
from speechgpt.packed_model import learn_from_packs
from speechgpt.packs import collate_pack
from speechgpt.training_benchmark import JOBS, PAD, TOY, Trainee, make_model, packed_rows
from speechgpt.training_rows import VOCABULARY
from speechgpt.units.machine import Machine, seconds_of

SIZES, QUICK_SIZES = (2048, 4096, 8192, 16_384), (512, 1024)  # tokens


def grow(machine: Machine, quick: bool) -> Iterator[Growth]:
    """Forward and backward of one pack of the 1B model, not compiled: as many shapes as points."""
    job = replace(JOBS["1B full"], compiled=False, packs=1)
    job = replace(job, **TOY | {"packs": 1}) if quick else job
    sizes = QUICK_SIZES if quick else SIZES
    trainee = Trainee(make_model(job, machine.device), machine.device)
    learn_from_packs(trainee.model)
    for tokens in sizes:
        _, [pack] = packed_rows(replace(job, tokens=tokens))
        yield _growth("training, 1B, a pack", "tokens a pack", tokens, trainee, pack, machine)
    most = sizes[-1]
    for length in sizes:
        ids = np.random.default_rng(0).integers(3, VOCABULARY, length)
        rows = [(ids, np.arange(length) >= length // 2, 0)] * (most // length)
        pack = collate_pack(rows, PAD, most, length)
        name = f"training, 1B, a pack of {most} tokens"
        yield _growth(name, "tokens a row", length, trainee, pack, machine)


def _growth(part: str, axis: str, size: int, trainee: Trainee, pack: dict, machine: Machine) -> Growth:
    def learn() -> None:
        trainee.learn(pack, 1000)
        trainee.optimizer.zero_grad()

    seconds = seconds_of(learn, machine, repeats=2, warmup=1)
    return Growth(part, axis, size, seconds, _step_bytes(trainee, learn, machine))


def _step_bytes(trainee: Trainee, learn: Callable[[], None], machine: Machine) -> float:
    """Peak bytes of a step over the weights: on CUDA what is allocated, else what the backward pass keeps."""
    if machine.kind == "cuda":
        machine.synchronize()
        torch.cuda.reset_peak_memory_stats(machine.device)
        before = torch.cuda.memory_allocated(machine.device)
        learn()
        machine.synchronize()
        return torch.cuda.max_memory_allocated(machine.device) - before
    own = {p.untyped_storage().data_ptr() for p in trainee.model.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        learn()
    return float(sum(saved.values()))


growth = {"training, growth": grow}
