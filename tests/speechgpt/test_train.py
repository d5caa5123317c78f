"""The three training stages, on minuscule models."""

import json
import random
import shutil
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from speechgpt.batches import (
    IGNORED,
    EpochBatches,
    LengthBatches,
    NoisyRows,
    TextNoise,
    TokenRows,
    UnitNoise,
    collate,
    pack,
)
from speechgpt.data.dialogue_rows import ChainRow, InstructRow, write_chain, write_instruct
from speechgpt.data.files import write_text
from speechgpt.data.published import PREFIX, write_published
from speechgpt.data.rows import UnitRow, write_units
from speechgpt.model import LlamaSettings, load_trained, new_llama, save_llama
from speechgpt.prompts import PromptFormat
from speechgpt.rendering import Renderer, render_all, stage_rows
from speechgpt.row_files import read_lines
from speechgpt.stage_trainer import StageTrainer
from speechgpt.stages import Run, StageConfig
from speechgpt.text_tokenizer import train_tokenizer
from speechgpt.train import main, stage_model, training_arguments
from speechgpt.vocabulary import Vocabulary

UNITS = 12
WORDS = ("see", "moo", "low", "moss", "soon", "lawn")
TRAINER = {
    "use_cpu": True,
    "report_to": "none",
    "logging_steps": 2,
    "learning_rate": 0.01,
    "warmup_steps": 0,
    "max_steps": 4,
    "per_device_train_batch_size": 4,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a model, and rows of every kind."""
    folder = tmp_path_factory.mktemp("world")
    train_tokenizer([" ".join(WORDS), "write say what is said"], 300, folder / "tokenizer")
    vocabulary = Vocabulary.create(folder / "tokenizer", UNITS)
    sizes = LlamaSettings(hidden=16, layers=1, heads=2, intermediate=24, context=128)
    save_llama(new_llama(sizes, vocabulary), vocabulary, folder / "model")
    draw = random.Random(3)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 5)))

    def units() -> list[int]:
        drawn = draw.choices(range(UNITS), k=draw.randint(3, 12))
        return [u for i, u in enumerate(drawn) if i == 0 or u != drawn[i - 1]]

    def split(i: int) -> str:
        return "dev" if i % 8 > 5 else "train"

    rows = [units() for _ in range(32)]
    write_units(folder / "units.jsonl",
                [UnitRow(f"u{i}", u, [1] * len(u), split=split(i)) for i, u in enumerate(rows)])  # fmt: skip
    write_text(folder / "text.txt", "\n".join(text() for _ in range(10)) + "\n")
    write_instruct(folder / "instruct.jsonl", [
        InstructRow(f"c{i}", "chat", question=text(), answer=text(), split=split(i)) if i % 5 == 0 else
        InstructRow(f"i{i}", ("asr", "tts")[i % 2], "Say it.", text(), units(), split=split(i))
        for i in range(32)
    ])  # fmt: skip
    write_chain(folder / "chain.jsonl", [
        ChainRow(f"q{i}", "speech-speech", text(), text(), units(), units(), split=split(i))
        for i in range(24)
    ])  # fmt: skip
    return folder


def write_stage(path: Path, **settings) -> Path:
    settings = {"stage": 2, "max_length": 96, "seed": 5} | settings
    settings["trainer"] = TRAINER | settings.get("trainer", {})
    write_text(path, json.dumps(settings))  # JSON is YAML
    return path


def command(world: Path, config: Path, out: Path, data: str = "instruct.jsonl", *more: str) -> list[str]:
    return ["--config", str(config), "--model", str(world / "model"), "--data", str(world / data),
            "--out", str(out), *more]  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    name = "adapter_model.safetensors" if (folder / "adapter_config.json").exists() else "model.safetensors"
    return load_file(folder / name)


def trainer_of(world: Path, tmp_path: Path, **settings) -> StageTrainer:
    """A trainer over the instruction rows, as `run_stage` makes it."""
    config = StageConfig.load(write_stage(tmp_path / "stage.yaml", **settings))
    data = [world / "instruct.jsonl"]
    run = Run.describe(config, world / "model", data, [], [], tmp_path / "run")
    vocabulary = Vocabulary.load(world / "model")
    rows = stage_rows(config, vocabulary, data, [], [], run.out)
    torch.manual_seed(config.seed)
    model = stage_model(config, world / "model")
    return StageTrainer(model, training_arguments(config, run, "stage.yaml"), config, vocabulary,
                        rows.train, rows.dev)  # fmt: skip


def token_rows(lengths: list[int]) -> TokenRows:
    counter = iter(range(10_000))
    rows = [np.array([next(counter) for _ in range(n)]) for n in lengths]
    return TokenRows.join([(ids, np.ones(len(ids), dtype=bool), "units") for ids in rows])


# Packing and batches


def test_packing_keeps_every_token_once_and_cuts_only_rows_longer_than_a_block():
    rows = token_rows([5, 9, 3, 23, 8, 2, 10, 1])
    blocks = pack(rows, 10)
    assert blocks.lengths.max() <= 10
    assert sorted(blocks.ids.tolist()) == sorted(rows.ids.tolist())
    starts = set(rows.offsets[:-1].tolist())
    for ids, mask, _ in (blocks[i] for i in range(len(blocks))):
        assert [i in starts for i in ids] == [not m for m in mask], "only a row's first token has no loss"
    for start, end in zip(rows.offsets[:-1], rows.offsets[1:], strict=True):
        if end - start <= 10:
            homes = [b for b in range(len(blocks)) if set(rows.ids[start:end]) & set(blocks[b][0].tolist())]
            assert len(homes) == 1
    again = pack(rows, 10)
    assert np.array_equal(again.ids, blocks.ids) and np.array_equal(again.offsets, blocks.offsets)
    assert len(blocks) == 7, "61 tokens cannot fill fewer than 7 blocks of 10"


@pytest.mark.parametrize("limit", [{"rows": 5}, {"tokens": 200}])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_batches_cover_every_row_and_have_the_same_number_each_epoch(limit, world_size):
    lengths = np.random.default_rng(0).integers(4, 120, size=97)
    shares = [LengthBatches(lengths, **limit, seed=1, rank=r, world=world_size) for r in range(world_size)]
    orders = []
    for epoch in range(3):
        for share in shares:
            share.set_epoch(epoch)
        found = [list(share) for share in shares]
        assert {len(f) for f in found} == {len(shares[0])}
        assert {row for f in found for batch in f for row in batch} == set(range(97))
        orders.append(found[0])
        if "tokens" in limit:
            for batch in found[0]:
                assert len(batch) * (-(-max(lengths[batch]) // 16) * 16) <= 200
    assert orders[0] != orders[1] != orders[2]
    shares[0].set_epoch(1)
    assert list(shares[0]) == orders[1], "the order is a function of seed and epoch"


def test_collate_pads_on_the_right_and_puts_loss_on_the_mask_alone():
    rows = [(np.array([1, 2, 3]), np.array([False, True, True]), 0), (np.array([4]), np.array([False]), 0)]
    batch = collate(rows, pad_id=9)
    assert batch["input_ids"].shape == (2, 16)
    assert batch["input_ids"][0, :4].tolist() == [1, 2, 3, 9]
    assert batch["labels"][0, :4].tolist() == [IGNORED, 2, 3, IGNORED]
    assert (batch["labels"][1] == IGNORED).all()


def test_text_noise_touches_words_after_heard_units_takes_their_loss_and_no_other():
    # <s> units | words </s> and, without heard units, words | units
    heard = np.array([1, *range(100, 140), *range(10, 60), 2])
    said = np.array([1, *range(10, 60), *range(100, 140), 2])
    mask = np.arange(92) > 40
    units = UnitNoise(0.0, 100, 1000)
    text = TextNoise(0.3, 3, units)
    rows = NoisyRows(
        TokenRows.join([(heard, mask, "asr"), (said, np.arange(92) > 50, "tts")]), units, 1, text
    )
    ids, left, _ = rows[0, 0]
    lost = mask & ~left
    assert 5 < lost.sum() < 28  # of 50, 15 on average
    assert (ids != heard)[~lost].sum() == 0 and (ids != heard)[lost].sum() >= lost.sum() - 2
    assert ids.min() >= 1 and (ids[lost] >= 3).all() and (ids[lost] < 100).all()
    assert left[-1] and not lost[:41].any()  # the end stays, and has its loss
    again, later = rows[0, 0][0], rows[1, 0][0]
    assert (again == ids).all() and (later != ids).any()
    ids, left, _ = rows[0, 1]
    assert (ids == said).all() and (left == (np.arange(92) > 50)).all()


def test_unit_noise_touches_only_units_that_are_heard_and_depends_on_epoch_and_row_alone():
    ids = np.concatenate([[1, 2], np.arange(100, 1100), [3], np.arange(100, 1100)])  # units are 100 to 1099
    mask = np.arange(len(ids)) > 1002
    rows = NoisyRows(TokenRows.join([(ids, mask, "asr")] * 2), UnitNoise(0.2, 100, 1000), seed=1)
    found, kept, _ = rows[(0, 1)]
    changed = found != ids
    assert 0.15 < changed[2:1002].mean() < 0.25 and changed.sum() == changed[2:1002].sum()
    assert found[2:1002].min() >= 100 and found.max() < 1100 and (kept == mask).all()
    assert (found == rows[(0, 1)][0]).all()
    assert (found != rows[(1, 1)][0]).any() and (found != rows[(0, 0)][0]).any()
    batches = EpochBatches(LengthBatches(rows.rows.lengths, rows=2))
    batches.set_epoch(3)
    assert sorted(*batches) == [(3, 0), (3, 1)]


# Rows


def test_every_kind_of_file_is_read(world, tmp_path):
    write_text(tmp_path / "units.txt", "<sosp><1><2><eosp>\n\n<sosp><3><eosp>\n")
    assert [(line.kind, line.row) for line in read_lines(tmp_path / "units.txt")] == [
        ("units", [1, 2]), ("units", [3])]  # fmt: skip
    assert {line.kind for line in read_lines(world / "text.txt")} == {"text"}
    assert {line.kind for line in read_lines(world / "instruct.jsonl")} == {"asr", "tts", "chat"}
    rows = [ChainRow("a", "speech-speech", "see moo", "low", [1, 2], [3])]
    write_published(tmp_path / "published.jsonl", rows)
    [line] = read_lines(tmp_path / "published.jsonl")
    assert (line.kind, line.row.answer_units) == ("speech-speech", [3])
    write_text(tmp_path / "qa.jsonl", '{"id":"a","question":"see moo","answer":"low","split":"dev"}\n')
    found = [(line.split, line.kind, line.row) for line in read_lines(tmp_path / "qa.jsonl")]
    assert found == [("dev", "text", "see moo"), ("dev", "text", "low")]
    write_text(tmp_path / "other.jsonl", '{"id":"a"}\n')
    with pytest.raises(ValueError, match="other.jsonl:1: no row of a stage, and no text"):
        list(read_lines(tmp_path / "other.jsonl"))
    write_text(tmp_path / "broken.txt", "<sosp><1><eosp>\n<sosp><x><eosp>\n")
    with pytest.raises(ValueError, match="broken.txt:2: not units"):
        list(read_lines(tmp_path / "broken.txt"))


def test_loss_is_on_the_answer_alone(world):
    vocabulary = Vocabulary.load(world / "model")
    renderer = Renderer(vocabulary, StageConfig(stage=2, max_length=96))
    for line in read_lines(world / "instruct.jsonl"):
        ids, mask = renderer.render(line)
        rendered = PromptFormat(vocabulary).render_instruct(line.row)
        batch = collate([(ids, mask, 0)], vocabulary.pad_id)
        labels = batch["labels"][0][: len(ids)].tolist()
        assert [i for i in labels if i != IGNORED] == rendered.ids[rendered.prompt_length :]


def test_rows_that_are_too_long_are_rejected_with_the_reason(world, tmp_path):
    vocabulary = Vocabulary.load(world / "model")
    config = StageConfig(stage=2, max_length=24)
    use = partial(
        stage_rows, vocabulary=vocabulary, data=[world / "instruct.jsonl"], mix=[], dev=[], out=tmp_path
    )
    with pytest.raises(
        ValueError, match=r"tokens; max_length is 24; \d+ rejected rows in all, max_bad allows 0"
    ):
        use(config)
    rejected = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    config.max_bad = len(rejected)
    rows = use(config)
    assert rows.counts["rejected"] == len(rejected) > 0
    assert sum(rows.counts["rows"].values()) + rows.counts["dev_rows"] + len(rejected) == 32
    assert rows.train.lengths.max() <= 24


def test_rendered_rows_are_kept_by_content_and_never_by_name(world, tmp_path):
    vocabulary = Vocabulary.load(world / "model")
    data = tmp_path / "rows.jsonl"
    shutil.copy(world / "instruct.jsonl", data)
    use = partial(stage_rows, vocabulary=vocabulary, mix=[], dev=[], out=tmp_path)
    config = StageConfig(stage=2, max_length=96)
    first = use(config, data=[data])
    [folder] = (tmp_path / "rendered").iterdir()
    assert np.array_equal(use(config, data=[data]).train.ids, first.train.ids)
    data.write_text("\n".join(data.read_text().splitlines()[:9]) + "\n")  # same name, other content
    assert len(use(config, data=[data]).train) < len(first.train)
    assert [folder] != list((tmp_path / "rendered").iterdir())


def test_mix_and_repeat_draw_shares_of_rows(world, tmp_path):
    vocabulary = Vocabulary.load(world / "model")
    config = StageConfig(stage=3, max_length=128, mix=0.25, repeat={"speech-speech": 2})
    found = stage_rows(config, vocabulary, [world / "chain.jsonl"], [world / "instruct.jsonl"], [], tmp_path)
    counts = found.counts["rows"]
    assert counts.pop("speech-speech") == 2 * 18
    assert sum(counts.values()) == 6  # a quarter of 18 + 6


def test_worker_processes_render_the_same_rows(world, monkeypatch):
    monkeypatch.setattr("speechgpt.rendering.WORTH_WORKERS", 5)
    monkeypatch.setattr("speechgpt.rendering.CHUNK", 3)
    renderer = Renderer(Vocabulary.load(world / "model"), StageConfig(stage=2, max_length=40))
    alone, spread = (
        list(render_all(read_lines(world / "instruct.jsonl"), renderer, processes)) for processes in (1, 2)
    )
    assert len(alone) == len(spread) == 32
    for a, b in zip(alone, spread, strict=True):
        assert a[0] == b[0] and a[4] == b[4] and np.array_equal(a[2], b[2])


# Configs


@pytest.mark.parametrize("preset", ["toy", "mini", "own", "speechgpt-7b"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_presets_load_and_name_real_trainer_settings(preset, stage, tmp_path, world):
    config = StageConfig.load(files("speechgpt") / "presets" / preset / f"stage{stage}.yaml")
    assert config.stage == stage and bool(config.lora) == (stage == 3)
    if preset == "speechgpt-7b":
        assert config.prefix == PREFIX
    run = Run.describe(config, world / "model", [world / "text.txt"], [], [], tmp_path / "run")
    arguments = training_arguments(config, run, "stage.yaml")
    assert arguments.learning_rate == config.trainer["learning_rate"]
    assert arguments.use_cpu is not torch.cuda.is_available()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 3}, "unknown setting steps; known: stage, max_length"),
        ({"stage": 4}, "stage is 4; expected 1, 2 or 3"),
        ({"lora": {"rank": 3}}, "unknown setting lora.rank; known in lora: r, alpha"),
        ({"trainer": {"output_dir": "x"}}, "trainer.output_dir is decided by --out"),
        ({"trainer": {"learning_rat": 1}}, "unknown setting trainer.learning_rat; near names: learning_rate"),
        ({"trainer": {"save_total_limit": 1}}, "save_total_limit under 2"),
        ({"packed": True}, "batch_tokens is 0; packed rows want the tokens of a pack"),
        ({"compiled": True}, "compiled wants packed"),
        (
            {"packed": True, "batch_tokens": 512, "trainer": {"fsdp_config": {"min_num_params": 100}}},
            "min_num_params shards the head by itself",
        ),
    ],
)
def test_a_wrong_config_is_one_clear_line(world, tmp_path, settings, message):
    config = write_stage(tmp_path / "stage.yaml", **settings)
    with pytest.raises(ValueError, match=message):
        main(command(world, config, tmp_path / "out"))
    assert not list((tmp_path).glob("out/*.safetensors"))


# Training


@pytest.mark.parametrize(
    ("stage", "data", "more"),
    [
        (1, "units.jsonl", {"max_length": 32}),
        (2, "instruct.jsonl", {"batch_tokens": 128, "unit_noise": 0.3}),
        (3, "chain.jsonl", {"lora": {"r": 2, "alpha": 4, "dropout": 0.1}, "max_length": 128}),
        (1, "units.jsonl", {"max_length": 9, "batch_tokens": 64, "packed": True}),
        (2, "instruct.jsonl", {"batch_tokens": 96, "unit_noise": 0.3, "text_noise": 0.2, "packed": True}),
    ],
)
def test_a_stage_runs_is_done_and_goes_on_after_a_kill(
    world, tmp_path, capsys, monkeypatch, stage, data, more
):
    """A run killed half-way (also while it saves) and started again ends with the straight run's weights."""
    trainer = {"max_steps": 14, "save_steps": 3, "gradient_accumulation_steps": 2}
    config = write_stage(tmp_path / "stage.yaml", stage=stage, trainer=trainer, **more)
    mix = ["--mix", str(world / "text.txt")] if stage == 1 else []
    straight, killed = (
        command(world, config, tmp_path / name, data, *mix) for name in ("straight", "killed")
    )
    assert main(straight) == 0
    done = json.loads((tmp_path / "straight" / "done.json").read_text())
    assert done["steps"] == 14 and done["dev"]["unit_perplexity"] > 1 and done["epochs"] > 1
    assert "dev loss" in capsys.readouterr().out

    class Killed(BaseException):
        pass

    def kill(self, args, state, control, **_):
        if state.global_step == 8:
            partial_save = Path(args.output_dir) / "checkpoint-8"
            shutil.copytree(Path(args.output_dir) / "checkpoint-6", partial_save)
            (partial_save / "complete.json").unlink()  # as a kill while saving leaves it
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("speechgpt.stage_callbacks.Progress.on_step_end", kill)
        with pytest.raises(Killed):
            main(killed)
    assert not (tmp_path / "killed" / "done.json").exists()
    assert main(killed) == 0
    assert "goes on from checkpoint-6" in capsys.readouterr().err
    expected, found = weights(tmp_path / "straight"), weights(tmp_path / "killed")
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name
    assert Vocabulary.load(tmp_path / "killed").num_units == UNITS
    kept = {p.name for p in (tmp_path / "killed").iterdir()}
    assert not {"checkpoints", "rendered", "training_args.bin", ".final.part"} & kept
    done = tmp_path / "killed" / "done.json"  # alone is touched, so that make sees it newer than its inputs
    said = done.read_text()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").rglob("*") if p != done}
    assert main(killed) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").rglob("*") if p != done}
    assert done.read_text() == said


def test_a_changed_config_trains_again_and_keeps_the_earlier_run(world, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(world, write_stage(tmp_path / "a.yaml"), out)) == 0
    quiet = write_stage(tmp_path / "quiet.yaml", trainer={"logging_steps": 1})
    assert main(command(world, quiet, out)) == 0
    assert "nothing to do" in capsys.readouterr().err, "what is only shown does not count"
    first = weights(out)
    assert main(command(world, write_stage(tmp_path / "b.yaml", seed=6), out)) == 0
    [aside] = out.glob("superseded-*")
    assert torch.equal(weights(aside)["model.norm.weight"], first["model.norm.weight"])
    assert not torch.equal(weights(out)["model.norm.weight"], first["model.norm.weight"])


def test_a_run_from_before_a_setting_existed_is_still_the_same_run(world, tmp_path):
    """A run's identity holds no setting that came later, as long as it says what was done before it."""
    given = {"model": world / "model", "data": [world / "text.txt"], "mix": [], "dev": [], "out": tmp_path}
    config = StageConfig.load(write_stage(tmp_path / "stage.yaml"))
    run = Run.describe(config, **given)
    assert not {"packed", "compiled"} & run.record["inputs"]["config"].keys()
    assert {"packed", "compiled"} <= run.record["config"].keys()
    said = StageConfig.load(write_stage(tmp_path / "said.yaml", packed=False, compiled=False))
    assert Run.describe(said, **given).identity == run.identity
    other = StageConfig.load(write_stage(tmp_path / "other.yaml", packed=True, batch_tokens=64))
    assert Run.describe(other, **given).record["inputs"]["config"]["packed"] is True
    assert Run.describe(other, **given).identity != run.identity


def test_a_foreign_model_is_not_overwritten(world, tmp_path):
    shutil.copytree(world / "model", tmp_path / "out")
    with pytest.raises(ValueError, match="holds a model that no stage wrote"):
        main(command(world, write_stage(tmp_path / "stage.yaml"), tmp_path / "out"))


def test_two_small_batches_give_the_update_of_one_large_batch(world, tmp_path):
    """Also where the halves hold different numbers of supervised tokens."""
    found = []
    for rows, accumulated in ((8, 1), (4, 2)):
        sizes = {
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": accumulated,
            "max_steps": 1,
        }
        trainer = trainer_of(world, tmp_path, trainer={**sizes, "optim": "sgd", "max_grad_norm": 1e9})
        batch = list(range(8))  # the same rows, in one batch or in two
        halves = [batch[i : i + rows] for i in range(0, 8, rows)]
        trainer.get_train_dataloader = lambda t=trainer, h=halves: torch.utils.data.DataLoader(
            t.train_dataset, batch_sampler=h, collate_fn=t.data_collator
        )
        trainer.train()
        found.append(dict(trainer.model.named_parameters()))
    before = dict(load_trained(world / "model")[0].named_parameters())
    for name, weight in found[0].items():
        step = (weight - before[name]).abs().max()
        assert step > 0
        assert (weight - found[1][name]).abs().max() < 1e-4 * step + 1e-8, name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"unit_noise": 0.4, "trainer": {"gradient_accumulation_steps": 2}},
        {"lora": {"r": 4, "alpha": 8, "dropout": 0.0, "targets": ["all-linear"]}},
    ],
)
def test_packs_of_the_rows_of_padded_batches_have_the_same_loss_curve(world, tmp_path, monkeypatch, settings):
    """Twenty updates over four epochs; also with noise, accumulated, and with an adapter and its new rows."""
    settings = {"batch_tokens": 200, **settings}
    trainer_settings = {"max_steps": 20, "logging_steps": 1, "learning_rate": 3e-3}
    settings["trainer"] = trainer_settings | settings.get("trainer", {})
    curves = []
    for packed in (False, True):
        if packed:  # the very rows of the padded batches, in the same order
            monkeypatch.setattr(
                "speechgpt.stage_trainer.PackedBatches",
                lambda lengths, tokens, **place: LengthBatches(lengths, 8, tokens, **place),
            )
        trainer = trainer_of(world, tmp_path / f"packed-{packed}", packed=packed, **settings)
        trainer.train()
        curves.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert trainer.state.epoch > 2
    assert len(curves[0]) == len(curves[1]) == 20
    assert curves[0][-1] < 0.98 * curves[0][0]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_loss_that_is_not_finite_stops_before_the_update(world, tmp_path, accumulated):
    trainer = trainer_of(world, tmp_path, trainer={"gradient_accumulation_steps": accumulated})
    calls = []
    compute = trainer.compute_loss

    def broken(*args, **kwargs):
        calls.append(0)
        loss = compute(*args, **kwargs)
        return loss * float("nan") if len(calls) == 2 * accumulated + 1 else loss  # first part of step 3

    trainer.compute_loss = broken
    seen = {}

    def remember(args, state, control, **_):
        seen.update(
            {n: p.detach().clone() for n, p in trainer.model.named_parameters()}, step=state.global_step
        )

    trainer.callback_handler.callbacks[-1].on_step_end = remember
    with pytest.raises(ValueError, match="step 3: the loss is nan.*stopped before the update"):
        trainer.train()
    assert seen.pop("step") == 2
    assert all(torch.equal(p, seen[n]) for n, p in trainer.model.named_parameters())


def test_a_gradient_that_is_not_finite_stops_too(world, tmp_path):
    trainer = trainer_of(world, tmp_path)
    trainer.model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    with pytest.raises(ValueError, match="step 1: the loss is [0-9.]+, the gradient norm (nan|inf)"):
        trainer.train()
    assert all(torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())


def test_a_time_budget_ends_the_run_and_the_schedule_with_it(world, tmp_path, monkeypatch):
    seconds = iter(range(0, 1000, 6))  # each look at the clock is 6 seconds later: ten steps a minute
    monkeypatch.setattr(
        "speechgpt.stage_callbacks.TrainingClock.seconds", property(lambda self: next(seconds))
    )
    settings = {"max_steps": -1, "num_train_epochs": 1000, "lr_scheduler_type": "linear", "logging_steps": 1}
    trainer = trainer_of(world, tmp_path, max_minutes=1.0, trainer=settings)
    result = trainer.train()
    assert result.global_step == 11
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates[0] == pytest.approx(0.01) and rates[-1] == pytest.approx(0.001, rel=0.01)
    assert all(a >= b for a, b in zip(rates[:-1], rates[1:], strict=True))


def test_worker_processes_load_the_same_batches(world, tmp_path):
    found = []
    for workers in (0, 1):
        loader = trainer_of(
            world, tmp_path, trainer={"dataloader_num_workers": workers}
        ).get_train_dataloader()
        batches = []
        for epoch in range(3):
            loader.set_epoch(epoch)
            batches += [batch["input_ids"] for batch in loader]
        found.append(batches)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found[0][:5], found[0][5:], strict=False))


def test_a_unit_that_the_model_lacks_names_the_row(world, tmp_path):
    write_units(tmp_path / "units.jsonl", [UnitRow("odd one", [1, UNITS], [1, 1])])
    config = write_stage(tmp_path / "stage.yaml", stage=1)
    with pytest.raises(ValueError, match=f"units.jsonl: row odd one: unit {UNITS} is out of range"):
        main(["--config", str(config), "--model", str(world / "model"),
              "--data", str(tmp_path / "units.jsonl"), "--out", str(tmp_path / "out")])  # fmt: skip


def test_dev_loss_is_exact(world, tmp_path):
    trainer = trainer_of(world, tmp_path)
    metrics = trainer.evaluate()
    total, count = 0.0, 0
    for i in range(len(trainer.eval_dataset)):
        batch = trainer.data_collator([trainer.eval_dataset[i]])
        with torch.no_grad():
            loss = trainer.model.eval()(**batch).loss
        tokens = int((batch["labels"][:, 1:] != IGNORED).sum())
        total, count = total + float(loss) * tokens, count + tokens
    assert metrics["eval_tokens"] == count
    assert metrics["eval_loss"] == pytest.approx(total / count, rel=1e-5)
    assert {"eval_unit_perplexity", "eval_text_perplexity", "eval_loss_asr"} <= metrics.keys()
