"""One entry for the three stages: `speechgpt train --config stageN.yaml --model DIR --data ROWS --out DIR`.

Run it under torchrun for several processes (`torchrun --nproc_per_node 8 -m speechgpt.train ...`). The same
command again goes on from the last whole checkpoint, and does nothing once the run has ended.
"""

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from speechgpt.cli import QUIET
from speechgpt.data.hub import LLAMA, model_folder, named_path
from speechgpt.stages import Run, StageConfig, check_trainer_keys

if TYPE_CHECKING:
    from speechgpt.stage_trainer import StageTrainer

NOT_FOR_USERS = ("training_args.bin", "README.md")  # written by the libraries; hold this machine's paths


def main(argv: list[str]) -> int:
    """`speechgpt train`"""
    parser = argparse.ArgumentParser(prog="speechgpt train", description="run a training stage (1, 2 or 3)")
    parser.add_argument("--config", required=True, help="stage1.yaml, stage2.yaml or stage3.yaml")
    parser.add_argument("--model", required=True, type=named_path, help="model folder to start from")
    parser.add_argument("--data", required=True, type=Path, nargs="+", help="rows to train on")
    parser.add_argument("--mix", type=Path, nargs="+", default=[], help="more rows, by the config's mix")
    parser.add_argument(
        "--dev", type=Path, nargs="+", default=[], help="default: the split dev of the others"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the run and its model")
    args = parser.parse_args(argv)
    config = StageConfig.load(args.config)
    args.model = model_folder(args.model, LLAMA)
    run = Run.describe(config, args.model, args.data, args.mix, args.dev, args.out)
    if run.finished():
        (args.out / "done.json").touch()  # newer than its inputs again, so that make rests
        print(f"{args.out}: stage {config.stage} has ended already; nothing to do", file=sys.stderr)
        return 0
    done = run_stage(run, config, args)
    if done is not None:
        dev = "".join(f", dev {name} {value:.4g}" for name, value in done["dev"].items())
        print(f"{args.out}: stage {config.stage}, {done['steps']} steps, {done['seconds']:.0f} s{dev}")
    return 0


def run_stage(run: Run, config: StageConfig, files: argparse.Namespace) -> dict | None:
    """Trains to the end and publishes the model. Returns what done.json holds; None in other processes."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    from transformers import set_seed

    from speechgpt.rendering import stage_rows
    from speechgpt.stage_trainer import StageTrainer
    from speechgpt.vocabulary import Vocabulary

    arguments = training_arguments(config, run, files.config)
    vocabulary = Vocabulary.load(files.model)
    with arguments.main_process_first(local=False):
        if arguments.process_index == 0:
            run.begin()
            run.drop_partial_checkpoints()
        rows = stage_rows(config, vocabulary, files.data, files.mix, files.dev, run.out)
    last, seconds = run.last_checkpoint() or (None, 0.0)
    set_seed(config.seed)
    model = stage_model(config, files.model)
    trainer = StageTrainer(model, arguments, config, vocabulary, rows.train, rows.dev, seconds)
    if last is not None and arguments.process_index == 0:
        print(f"{run.out}: goes on from {last.name}", file=sys.stderr)
    result = trainer.train(resume_from_checkpoint=str(last) if last else None)
    seconds_trained = trainer.clock.seconds
    dev = trainer.evaluate() if rows.dev is not None else {}
    done = {
        "stage": config.stage,
        "steps": result.global_step,
        "epochs": round(trainer.state.epoch or 0.0, 3),
        "seconds": round(seconds_trained, 1),
        "tokens_per_second": round(
            int(rows.train.offsets[-1]) * (trainer.state.epoch or 0) / seconds_trained
        ),
        "processes": arguments.world_size,
        **rows.counts,
        "dev": {name.removeprefix("eval_"): value for name, value in dev.items() if name != "epoch"},
        "losses": [{k: e[k] for k in ("step", "loss")} for e in trainer.state.log_history if "loss" in e],
    }
    return _publish(trainer, run, done)


def _publish(trainer: "StageTrainer", run: Run, done: dict) -> dict | None:
    """Saves the final model with its vocabulary; collective, because a sharded model is gathered from all."""
    staging = run.out / ".final.part"
    trainer.model.config.use_cache = True  # the Trainer switches it off
    trainer.save_model(str(staging))
    if trainer.args.process_index != 0:
        return None
    for name in NOT_FOR_USERS:
        (staging / name).unlink(missing_ok=True)
    trainer.vocabulary.save(staging)
    run.publish(staging, done)
    return done


def stage_model(config: StageConfig, folder: Path):
    """The model that a stage trains: the whole LLaMA, or an adapter on it that also trains the new rows."""
    from speechgpt.model import load_trained

    model, vocabulary = load_trained(folder, config.dtype)
    lora = config.lora_settings
    if lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    trained_rows = None
    if lora.train_new_rows:
        trained_rows = {"embed_tokens": vocabulary.new_ids}
        if not model.config.tie_word_embeddings:  # a plain list would leave the head's rows as they are
            trained_rows["lm_head"] = vocabulary.new_ids
    settings = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if lora.targets == ["all-linear"] else lora.targets,
        trainable_token_indices=trained_rows,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, settings)


def training_arguments(config: StageConfig, run: Run, where: str | Path):
    """transformers.TrainingArguments of a stage; `bf16: auto` and `tf32: auto` follow the device."""
    import torch
    from transformers import TrainingArguments

    check_trainer_keys(config.trainer, [f.name for f in fields(TrainingArguments) if f.init], where)
    settings = {
        "report_to": "tensorboard",
        "logging_steps": 50,
        "save_steps": 500,
        "save_total_limit": 2,
        "warmup_steps": 0.03,
        "ddp_find_unused_parameters": False,
        **config.trainer,
    }
    cuda = torch.cuda.is_available() and not settings.get("use_cpu")
    settings["use_cpu"] = not cuda  # or bf16 on a CPU is refused
    for name, fits in (("bf16", cuda and torch.cuda.is_bf16_supported()), ("tf32", cuda)):
        if settings.get(name) == "auto":
            settings[name] = True if fits else None if name == "tf32" else False
    if settings.get("gradient_checkpointing"):
        settings.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": False})
    if config.packed and "min_num_params" in (settings.get("fsdp_config") or {}):
        raise ValueError(
            f"{where}: trainer.fsdp_config.min_num_params shards the head by itself, where packed rows "
            "do not find it; give transformer_layer_cls_to_wrap, or packed: false"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # sharding needs several processes
        settings.pop("fsdp", None)
        settings.pop("fsdp_config", None)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.out / "tensorboard")
    try:
        arguments = TrainingArguments(
            output_dir=str(run.checkpoints),
            seed=config.seed,
            disable_tqdm=True,
            logging_nan_inf_filter=False,
            **settings,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: trainer: {error}") from error
    arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs want torchrun, not the library's DataParallel
    return arguments


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as problem:
        sys.exit(f"speechgpt train: {problem}")
