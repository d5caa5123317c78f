"""Each stage in two processes under torchrun, killed once, ends like one process that accumulates batches."""

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from speechgpt.train import main

_spec = spec_from_file_location("train_tests", Path(__file__).with_name("test_train.py"))
_train_tests = module_from_spec(_spec)
_spec.loader.exec_module(_train_tests)
world, write_stage, command, weights = (
    getattr(_train_tests, name) for name in ("world", "write_stage", "command", "weights")
)

LORA = {"r": 2, "alpha": 4, "dropout": 0.0}
SHARDED = {
    "fsdp": True,
    "fsdp_config": {"transformer_layer_cls_to_wrap": "LlamaDecoderLayer", "activation_checkpointing": True},
}
RUNS = {
    "1": (1, "units.jsonl", {"max_length": 16}),
    "2": (2, "instruct.jsonl", {"batch_tokens": 48}),
    "3": (3, "chain.jsonl", {"lora": LORA, "max_length": 128}),
    "2 packed": (2, "instruct.jsonl", {"batch_tokens": 48, "packed": True, "unit_noise": 0.2}),
    "2 sharded": (2, "instruct.jsonl", {"batch_tokens": 48, "packed": True}),
    "3 packed": (3, "chain.jsonl", {"lora": LORA, "max_length": 128, "batch_tokens": 96, "packed": True}),
}
DRIVER = """
import json, sys
from speechgpt.stage_callbacks import Progress
from speechgpt.train import main

class Killed(Exception):
    pass

def kill(self, args, state, control, **_):
    if state.global_step == 3:
        raise Killed

straight = Progress.on_step_end
for argv in json.load(open(sys.argv[1])):
    Progress.on_step_end = kill
    try:
        main(argv)
    except Killed:
        Progress.on_step_end = straight
    assert main(argv) == 0  # goes on from checkpoint-2
"""


@pytest.mark.slow
def test_two_processes_train_what_one_does(world, tmp_path):
    jobs = []
    for run, (stage, data, settings) in RUNS.items():
        for name, accumulated in (("one", 2), ("two", 1)):
            trainer = {"gradient_accumulation_steps": accumulated, "max_steps": 4, "save_steps": 2}
            trainer |= SHARDED if run == "2 sharded" else {}
            trainer["per_device_train_batch_size"] = 2  # all steps fall into the first epoch
            config = write_stage(
                tmp_path / f"{run}{name}.yaml", **settings | {"stage": stage, "trainer": trainer}
            )
            argv = command(world, config, tmp_path / f"out{run}{name}", data)
            if name == "one":
                assert main(argv) == 0
            else:
                jobs.append(argv)
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    (tmp_path / "driver.py").write_text(DRIVER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ran = subprocess.run(
        [*torchrun, str(tmp_path / "driver.py"), str(tmp_path / "jobs.json")],
        capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stderr.count("goes on from checkpoint-2") == len(RUNS)
    for run in RUNS:
        one, two = (tmp_path / f"out{run}{name}" for name in ("one", "two"))
        done = json.loads((two / "done.json").read_text())
        assert done["processes"] == 2 and done["steps"] == 4 and done["epochs"] <= 1
        assert done["dev"] == pytest.approx(json.loads((one / "done.json").read_text())["dev"], rel=1e-3)
        expected, found = weights(one), weights(two)
        for name in expected:
            assert torch.allclose(expected[name], found[name], atol=2e-4), (run, name)
