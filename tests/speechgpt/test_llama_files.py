"""Upstream checkpoints and LoRA files, converted and loaded as they are; peft is the judge of the merging."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechgpt.data.files import read_json, write_json
from speechgpt.llama_decoder import LlamaDecoder
from speechgpt.llama_files import LEFT_OVER, convert_llama, is_llama
from speechgpt.lora_files import Lora, base_of
from speechgpt.model import load_llama, load_trained
from speechgpt.model_dir import load_generator
from speechgpt.units.weight_files import read_tensors


def weights_of(folder) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def logits(model, ids=((1, 32_661, 7, 33_001, 99),)) -> torch.Tensor:
    with torch.no_grad():
        if isinstance(model, LlamaDecoder):
            return model.score(torch.tensor(ids))
        return model(input_ids=torch.tensor(ids)).logits


@pytest.mark.parametrize("layout", ["bin-shards", "safetensors-shards", "bin", "old-bin"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_layout_and_dtype_converts_bit_for_bit(layout, dtype, make_checkpoint, tmp_path):
    source = make_checkpoint(tmp_path / "cm", layout, dtype)
    told = convert_llama([source], tmp_path / "out", shard_bytes=1_000_000)
    files = [path for path in source.iterdir() if path.suffix in (".bin", ".safetensors")]
    wanted = {name: t for path in files for name, t in read_tensors(path).items()}
    wanted = {name: t for name, t in wanted.items() if not name.endswith(LEFT_OVER)}
    found = weights_of(tmp_path / "out")
    assert found.keys() == wanted.keys() and told["tensors"] == len(found) == 21
    assert all(torch.equal(found[name], t) and found[name].dtype == t.dtype for name, t in wanted.items())
    assert read_json(tmp_path / "out" / "config.json")["torch_dtype"] == dtype
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1, "shards are bounded"
    model, vocabulary = load_trained(tmp_path / "out")
    assert vocabulary.size == 33_006 and torch.equal(logits(model), logits(load_trained(source)[0]))


def test_the_provenance_names_every_file_by_its_hash(published, tmp_path):
    told = convert_llama([published / "SpeechGPT-7B-com", published / "SpeechGPT-7B-cm"], tmp_path / "out")
    assert told == read_json(tmp_path / "out" / "conversion.json") and told["merged"] == 4
    folders = {"base": published / "SpeechGPT-7B-cm", "lora": published / "SpeechGPT-7B-com"}
    for part, folder in folders.items():
        for file in told["inputs"][part]:
            assert hashlib.sha256((folder / file["name"]).read_bytes()).hexdigest() == file["sha256"]
    for file in told["outputs"]:
        assert hashlib.sha256((tmp_path / "out" / file["name"]).read_bytes()).hexdigest() == file["sha256"]
    assert {f["name"] for f in told["inputs"]["lora"]} == {"adapter_config.json", "adapter_model.bin"}
    assert "/somewhere/else" not in (tmp_path / "out" / "config.json").read_text()
    assert convert_llama([published / "SpeechGPT-7B-cm"], tmp_path / "out")["merged"] == 0  # replaces its own


@pytest.mark.parametrize("safetensors", [False, True])
def test_merging_is_what_peft_does(safetensors, make_checkpoint, make_lora, tmp_path):
    from peft import PeftModel

    base = make_checkpoint(tmp_path / "cm", "bin", "float32")
    lora = make_lora(tmp_path / "com", str(base), safetensors)
    judge = PeftModel.from_pretrained(load_llama(base), str(lora)).merge_and_unload()
    assert (logits(judge) - logits(load_llama(base))).abs().max() > 0.1, "the adapter must matter"
    convert_llama([base], tmp_path / "out", lora=lora)
    for model in (load_trained(tmp_path / "out")[0], load_trained(base, lora=lora)[0]):
        assert (logits(model) - logits(judge)).abs().max() < 1e-5
    merged = weights_of(tmp_path / "out")
    plain = read_tensors(base / "pytorch_model.bin")
    changed = {name for name, t in merged.items() if not torch.equal(t, plain[name])}
    assert changed == {f"model.layers.{n}.self_attn.{p}_proj.weight" for n in range(2) for p in "qv"}


def test_scales_of_later_peft(make_checkpoint, make_lora, tmp_path):
    """Square-root scaling and alphas by pattern, against peft."""
    from peft import PeftModel

    base = make_checkpoint(tmp_path / "cm", "bin", "float32")
    for number, more in enumerate(
        (
            {"use_rslora": True},
            {"alpha_pattern": {"layers.1.self_attn.v_proj": 3}},
            {"init_lora_weights": "gaussian"},
        )
    ):
        lora = make_lora(tmp_path / f"com{number}", str(base))
        write_json(lora / "adapter_config.json", read_json(lora / "adapter_config.json") | more)
        judge = PeftModel.from_pretrained(load_llama(base), str(lora)).merge_and_unload()
        assert (logits(load_trained(base, lora=lora)[0]) - logits(judge)).abs().max() < 1e-5, more


def test_an_adapter_alone_finds_its_base(published, make_lora, tmp_path):
    assert base_of(published / "SpeechGPT-7B-com") == published / "SpeechGPT-7B-cm"  # beside it
    assert base_of(make_lora(tmp_path / "a", str(published / "SpeechGPT-7B-cm"))).name == "SpeechGPT-7B-cm"
    alone = load_generator(published / "SpeechGPT-7B-com", device="cpu")
    both = load_generator(published / "SpeechGPT-7B-cm", device="cpu", lora=published / "SpeechGPT-7B-com")
    plain = load_generator(published / "SpeechGPT-7B-cm", device="cpu")
    assert torch.equal(logits(alone.model), logits(both.model))
    assert not torch.equal(logits(alone.model), logits(plain.model))
    lost = make_lora(tmp_path / "b", "/data/lost/llama")
    with pytest.raises(
        FileNotFoundError, match=r"an adapter of /data/lost/llama, .*give --model BASE --lora"
    ):
        load_generator(lost)


def test_rows_of_new_tokens_come_from_the_adapter_or_it_is_refused(make_checkpoint, make_lora, tmp_path):
    """Defect 10: an adapter trained on a resized LLaMA, whose new rows were not saved with it."""
    whole = make_checkpoint(tmp_path / "cm", "bin", "float32")
    rows = read_tensors(whole / "pytorch_model.bin")
    plain = shutil.copytree(whole, tmp_path / "llama")
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    torch.save(
        {n: t[:32_000].clone() if n in tables else t for n, t in rows.items()}, plain / "pytorch_model.bin"
    )
    write_json(plain / "config.json", read_json(plain / "config.json") | {"vocab_size": 32_000})
    (plain / "added_tokens.json").unlink()
    lora = make_lora(tmp_path / "com", "llama")
    for name in ("tokenizer.model", "added_tokens.json"):
        shutil.copy(whole / name, lora / name)
    for run in (
        lambda: load_trained(plain, lora=lora),
        lambda: convert_llama([plain, lora], tmp_path / "out"),
    ):
        with pytest.raises(
            ValueError, match="33006 tokens, model.embed_tokens.weight 32000 rows: the rows of"
        ):
            run()
    assert not (tmp_path / "out").exists()
    saved = torch.load(lora / "adapter_model.bin", weights_only=True)
    torch.save(
        saved | {f"base_model.model.{name}": rows[name] for name in tables}, lora / "adapter_model.bin"
    )
    wanted = logits(load_trained(whole, lora=make_lora(tmp_path / "same", "llama"))[0])
    assert torch.equal(logits(load_trained(plain, lora=lora)[0]), wanted)
    convert_llama([plain, lora], tmp_path / "out")
    model, vocabulary = load_trained(tmp_path / "out")
    assert vocabulary.size == 33_006 and (logits(model) - wanted).abs().max() < 1e-5


def test_our_own_adapters_rows_are_merged_into_shards_too(tiny_parts, tmp_path):
    from speechgpt.stages import StageConfig
    from speechgpt.train import stage_model

    model = stage_model(StageConfig(stage=3, max_length=32, lora={"r": 2, "alpha": 4}), tiny_parts["llm"])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "trainable_tokens" in name:
                weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    model.eval().save_pretrained(tmp_path / "adapter")
    convert_llama([tiny_parts["llm"], tmp_path / "adapter"], tmp_path / "out", shard_bytes=20_000)
    ids = ((1, 300, 305, 311, 315, 7),)
    assert (logits(load_trained(tmp_path / "out")[0], ids) - logits(model, ids)).abs().max() < 1e-5


def damaged(folder, change):
    """A copy of a checkpoint of one file, its weights put through `change`."""
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)  # not mapped: it is written over
    change(weights)
    torch.save(weights, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("model.norm.weight"), "missing model.norm.weight"),
        (
            lambda w: w.update({"model.layers.9.x.weight": torch.ones(2)}),
            "unexpected model.layers.9.x.weight",
        ),
        (lambda w: w.update({"lm_head.weight": torch.ones(5, 16)}), r"lm_head.weight has shape \(5, 16\)"),
        (
            lambda w: w.update({"model.embed_tokens.weight": torch.ones(9, 16)}),
            "9 rows, config.json says 33006",
        ),
        (lambda w: w.update({"model.norm.weight": torch.ones(16).int()}), "holds torch.int32"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, says, make_checkpoint, tmp_path):
    base = make_checkpoint(tmp_path / "cm", "bin")
    damaged(base, change)
    with pytest.raises(ValueError, match=says):
        convert_llama([base], tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cm"], "nothing may be left behind"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected a whole number from 0 to"),
        ({"num_hidden_layers": 1_000_000}, "1000000 layers of 21 tensors"),
        ({"num_hidden_layers": 3}, "missing model.layers.2"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"hidden_size": "16"}, "hidden_size is '16'"),
        ({"num_key_value_heads": "x"}, "num_key_value_heads is 'x'"),
        ({"intermediate_size": 25}, "config.json means"),
    ],
)
def test_sizes_of_another_llama_are_refused_before_anything_is_written(
    change, says, make_checkpoint, tmp_path, monkeypatch
):
    from speechgpt import llama_files

    def never(*arguments):
        raise AssertionError("a shard was written")

    monkeypatch.setattr(llama_files, "_write_shards", never)
    base = make_checkpoint(tmp_path / "cm", "bin")
    write_json(base / "config.json", read_json(base / "config.json") | change)
    with pytest.raises(ValueError, match=says) as error:
        convert_llama([base], tmp_path / "out")
    assert str(base) in str(error.value) and not (tmp_path / "out").exists()


def test_missing_and_broken_files_are_named(make_checkpoint, make_lora, tmp_path):
    base = make_checkpoint(tmp_path / "cm")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        convert_llama([tmp_path / "nowhere"], tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    with pytest.raises(ValueError, match="holds no conversion"):
        convert_llama([base], tmp_path / "mine")
    last = base / "pytorch_model-00002-of-00002.bin"
    content = last.read_bytes()
    for broken in (b"", b"PK\x03\x04 nothing", content[:1000], b"\x80\x02cos\nsystem\n(S'false'\ntR."):
        last.write_bytes(broken)
        with pytest.raises(ValueError, match="00002-of-00002.bin: cannot be read"):
            convert_llama([base], tmp_path / "out")
    last.unlink()
    with pytest.raises(FileNotFoundError, match="names pytorch_model-00002-of-00002.bin, not there"):
        convert_llama([base], tmp_path / "out")
    index = base / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.bin"}}))
    with pytest.raises(ValueError, match="names '../../secret.bin'"):
        convert_llama([base], tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "peft_type 'PREFIX_TUNING'; expected 'LORA'"),
        ({"use_dora": True}, "use_dora is set"),
        ({"r": 0}, "r is 0"),
        ({"r": 4}, "has rank 8, adapter_config.json says 4"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'.* converted to a plain LoRA"),
        ({"init_lora_weights": ["loftq"]}, "init_lora_weights is "),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern: '\\(' is no regular expression"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is a list; expected numbers by names"),
        ({"rank_pattern": {"q_proj": "8"}}, "rank_pattern: 'q_proj' is '8'; expected a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    ],
)
def test_other_adapters_are_refused(change, says, published, make_lora, tmp_path):
    lora = make_lora(tmp_path / "com", "x")
    write_json(lora / "adapter_config.json", read_json(lora / "adapter_config.json") | change)
    with pytest.raises(ValueError, match=says):
        load_trained(published / "SpeechGPT-7B-cm", lora=lora)


def test_broken_adapters_are_refused(published, make_lora, tmp_path):
    lora, base = make_lora(tmp_path / "com", "x"), published / "SpeechGPT-7B-cm"
    weights = torch.load(lora / "adapter_model.bin", weights_only=True)
    first = next(iter(weights))
    cases = [
        ({}, "holds no tensor at all"),
        ({k: v for k, v in weights.items() if k != first}, "has lora_B alone"),
        (weights | {first: torch.ones(8, 5)}, "belongs to another base"),
        ({k.replace("layers.1", "layers.7"): v for k, v in weights.items()}, "adapts model.layers.7"),
        ({"base_model.model.x.lora_embedding_A": torch.ones(2)}, "no tensor of a plain LoRA"),
        (weights | {first: torch.tensor(1.0)}, r"lora_A.weight has shape \(\); expected two dimensions"),
        (weights | {"base_model.model.lm_head.weight": torch.tensor(1.0)}, r"lm_head.weight has shape \(\)"),
        (weights | {"lm_head.weight": torch.ones(33_006, 5)}, r"in the base, \(33006, 5\) here"),
        (weights | {"model.norm.weight": torch.ones(1)}, r"in the base, \(1,\) here"),
        (weights | {first: torch.ones(8, 16).int()}, "holds torch.int32"),
        (weights | {first: [1]}, "no plain table of names and tensors"),
        (weights | {first: torch.zeros(1).expand(1 << 28, 16)}, "in a storage of 1 numbers"),
        (
            {
                f"base_model.model.x{n}.lora_{half}.weight": weights[first]
                for n in range(500)
                for half in "AB"
            },
            "its tensors would take 512000 bytes, the file has",
        ),
    ]
    for content, says in cases:
        torch.save(content, lora / "adapter_model.bin")
        with pytest.raises(ValueError, match=says):
            load_trained(base, lora=lora)
    (lora / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="neither adapter_model.safetensors nor adapter_model.bin"):
        Lora.read(lora)


@pytest.mark.parametrize(
    ("ids", "width", "says"),
    [
        ([1, 2], 5, r"rows of model.embed_tokens.weight are 5 wide, the base's is \(33006, 16\)"),
        (["a", "b"], 16, "adapter_config.json: trainable_token_indices holds 'a'"),
        ([1, -1], 16, "trainable_token_indices holds -1"),
        ([1, 33_006], 16, "trained row 33006 of model.embed_tokens.weight, which has 33006"),
        ([1], 16, "2 rows of model.embed_tokens.weight; adapter_config.json does not say"),
    ],
)
def test_trained_rows_that_do_not_fit_are_refused(ids, width, says, published, make_lora, tmp_path):
    lora = make_lora(tmp_path / "com", "x")
    settings = read_json(lora / "adapter_config.json")
    write_json(lora / "adapter_config.json", settings | {"trainable_token_indices": ids})
    rows = {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.zeros(2, width)}
    weights = torch.load(lora / "adapter_model.bin", weights_only=True)
    torch.save(weights | rows, lora / "adapter_model.bin")
    with pytest.raises(ValueError, match=says) as error:
        convert_llama([published / "SpeechGPT-7B-cm"], tmp_path / "out", lora=lora)
    assert str(lora) in str(error.value) and not (tmp_path / "out").exists()


def test_what_a_torch_file_calls_is_never_made(make_lora, tmp_path):
    """torch's own reader of tensors alone allows bytearray(n), for any n."""

    class Large:
        def __reduce__(self):
            return bytearray, (1 << 40,)

    lora = make_lora(tmp_path / "com", "x")
    torch.save({"x": Large()}, lora / "adapter_model.bin")
    with pytest.raises(
        ValueError, match="adapter_model.bin: cannot be read as weights: it holds no plain table"
    ):
        Lora.read(lora)


def test_mutated_adapters_end_in_a_clear_error(make_lora, tmp_path):
    """300 of them here; 3,000 were tried."""
    import random

    draws = random.Random(1)
    for safetensors in (False, True):
        lora = make_lora(tmp_path / str(safetensors), "x", safetensors)
        path, content = Lora.read(lora).weights_file, Lora.read(lora).weights_file.read_bytes()
        refused = 0
        for _ in range(150):
            changed = bytearray(content)
            for _ in range(draws.randrange(1, 5)):
                at = draws.randrange(len(changed))
                changed[at : at + draws.randrange(9)] = draws.randbytes(draws.randrange(9))
            path.unlink()  # the last one may still be mapped
            path.write_bytes(changed)
            try:
                Lora.read(lora)
            except ValueError as error:
                refused += 1
                assert str(lora) in str(error)
        assert refused > 75


def test_what_counts_as_a_llama(published, make_lora, tmp_path):
    base, lora = published / "SpeechGPT-7B-cm", published / "SpeechGPT-7B-com"
    yes = [
        base,
        base / "pytorch_model-00001-of-00002.bin",
        base / "config.json",
        lora,
        lora / "adapter_model.bin",
    ]
    assert all(is_llama(path) for path in yes)
    (tmp_path / "config.json").write_text('{"model_type": "hubert"}')
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    assert not any(is_llama(p) for p in (tmp_path, tmp_path / "model.safetensors", base / "tokenizer.model"))
    found = convert_llama(
        [base / "pytorch_model-00001-of-00002.bin", lora / "adapter_model.bin"], tmp_path / "o"
    )
    assert found["merged"] == 4 and len(found["inputs"]["base"]) == 3, "one file stands for its checkpoint"
