"""Adapters that also train the rows of units and markers: what trains, what stays, reload and merge."""

from pathlib import Path

import pytest
import torch

from speechgpt.model import LlamaSettings, load_trained, merge_main, new_llama, save_llama
from speechgpt.stages import StageConfig
from speechgpt.text_tokenizer import train_tokenizer
from speechgpt.train import stage_model
from speechgpt.vocabulary import Vocabulary

UNITS = 6


def base_model(folder: Path, tied: bool) -> Vocabulary:
    train_tokenizer(["see moo low lawn"], 280, folder / "tokenizer")
    vocabulary = Vocabulary.create(folder / "tokenizer", UNITS)
    sizes = LlamaSettings(hidden=16, layers=2, heads=2, intermediate=24, context=64, tied=tied)
    save_llama(new_llama(sizes, vocabulary), vocabulary, folder / "base")
    return vocabulary


def trained_adapter(folder: Path, vocabulary: Vocabulary):
    """A few steps of an adapter on all linear layers, as stage 3 makes it."""
    config = StageConfig(stage=3, max_length=32, lora={"r": 4, "alpha": 8, "targets": ["all-linear"]})
    torch.manual_seed(0)
    model = stage_model(config, folder / "base")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    ids = torch.randint(0, vocabulary.size, (4, 20))
    for _ in range(4):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.eval()
    model.save_pretrained(folder / "adapter")
    vocabulary.save(folder / "adapter")
    return model, ids


@pytest.mark.parametrize("tied", [True, False])
def test_adapter_round_trip_and_merge(tmp_path, tied):
    from peft import PeftModel

    vocabulary = base_model(tmp_path, tied)
    before, _ = load_trained(tmp_path / "base")
    model, ids = trained_adapter(tmp_path, vocabulary)
    with torch.no_grad():
        wanted = model(input_ids=ids).logits

    reloaded = PeftModel.from_pretrained(load_trained(tmp_path / "base")[0], str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids=ids).logits, wanted), "reload must be exact, new rows included"

    merge = ["--adapter", str(tmp_path / "adapter"), "--base", str(tmp_path / "base")]
    assert merge_main([*merge, "--out", str(tmp_path / "merged")]) == 0
    merged, found = load_trained(tmp_path / "merged")
    assert found.describe() == vocabulary.describe()
    with torch.no_grad():
        assert (merged(input_ids=ids).logits - wanted).abs().max() < 1e-6
    files = {p.name for p in (tmp_path / "merged").iterdir()}
    assert {"model.safetensors", "config.json", "speechgpt_vocab.json"} <= files
    assert not any("adapter" in name for name in files)

    for part in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(before, part)().weight, getattr(merged, part)().weight
        changed = (old != new).any(dim=1)
        assert not changed[: vocabulary.base_size].any(), f"{part}: a text row changed"
        assert changed[vocabulary.base_size :].all(), f"{part}: a unit or marker row never trained"


def test_merge_lora_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="adapter_config.json is missing"):
        merge_main(["--adapter", str(tmp_path), "--base", str(tmp_path), "--out", str(tmp_path / "out")])
