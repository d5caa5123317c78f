"""Small vocabularies of both profiles."""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def native(tmp_path_factory):
    from speechgpt.text_tokenizer import train_tokenizer
    from speechgpt.vocabulary import Vocabulary

    folder = tmp_path_factory.mktemp("native")
    texts = ["what is the capital of france", "the capital is paris", "turn on the light", "two and two"]
    train_tokenizer(texts * 5, 320, folder)
    return Vocabulary.create(folder, 20)


@pytest.fixture(scope="session")
def upstream():
    from speechgpt.upstream_vocabulary import UpstreamVocabulary

    return UpstreamVocabulary(GOLDEN / "upstream.model", 1000)


@pytest.fixture(params=["native", "upstream"])
def vocabulary(request):
    return request.getfixturevalue(request.param)


PIECES = 32_000  # LLaMA's
PUBLISHED_ROWS = 33_006


def llama_tokenizer(folder: Path) -> None:
    """The golden model filled up to LLaMA's 32,000 pieces with ones that no text holds."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((GOLDEN / "upstream.model").read_bytes())
    for number in range(len(model.pieces), PIECES):
        model.pieces.add(piece=f"\ue000{number}", score=-1e6 - number)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())


def published_config(dtype: str) -> dict:
    """config.json as transformers 4.29 wrote it; narrow, but with every row."""
    return {
        "_name_or_path": "/somewhere/else/llama-7b", "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 16,
        "initializer_range": 0.02, "intermediate_size": 24, "max_position_embeddings": 2048,
        "model_type": "llama", "num_attention_heads": 2, "num_hidden_layers": 2, "pad_token_id": 0,
        "rms_norm_eps": 1e-06, "tie_word_embeddings": False, "torch_dtype": dtype,
        "transformers_version": "4.29.1", "use_cache": True, "vocab_size": PUBLISHED_ROWS,
    }  # fmt: skip


def random_weights(dtype, rows: int = PUBLISHED_ROWS) -> dict:
    import torch

    hidden, inner = 16, 24
    shapes = {"model.embed_tokens.weight": (rows, hidden)}
    for layer in range(2):
        shapes |= {f"model.layers.{layer}.self_attn.{p}_proj.weight": (hidden, hidden) for p in "qkvo"}
        shapes |= {f"model.layers.{layer}.mlp.{p}_proj.weight": (inner, hidden) for p in ("gate", "up")}
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {
            f"model.layers.{layer}.{p}_layernorm.weight": (hidden,) for p in ("input", "post_attention")
        }
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (rows, hidden)}
    draws = torch.Generator().manual_seed(5)
    found = {name: (0.3 * torch.randn(shape, generator=draws)).to(dtype) for name, shape in shapes.items()}
    frequencies = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)}
    return found | frequencies  # which transformers saved then


def write_checkpoint(folder: Path, layout: str = "bin-shards", dtype: str = "float16") -> Path:
    """An upstream checkpoint as published: weights, config, slow tokenizer with its added tokens."""
    import json

    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    weights = random_weights(getattr(torch, dtype))
    names = list(weights)
    if layout.endswith("shards"):
        ending, stem = (".bin", "pytorch_model") if layout == "bin-shards" else (".safetensors", "model")
        parts = {f"{stem}-0000{n + 1}-of-00002{ending}": names[n::2] for n in range(2)}
        index = {"metadata": {"total_size": 1}, "weight_map": {n: f for f, ns in parts.items() for n in ns}}
        (folder / f"{stem}{ending}.index.json").write_text(json.dumps(index))
    else:
        parts = {"pytorch_model.bin": names}
    for file, chosen in parts.items():
        shard = {name: weights[name] for name in chosen}
        if file.endswith(".safetensors"):
            save_file(shard, folder / file, metadata={"format": "pt"})
        else:
            torch.save(shard, folder / file, _use_new_zipfile_serialization=layout != "old-bin")
    (folder / "config.json").write_text(json.dumps(published_config(dtype)))
    llama_tokenizer(folder)
    added = [f"<{u}>" for u in range(1000)]
    added += ["<sosp>", "<eosp>", "[Human]", "[SpeechGPT]", "<eoh>", "<eos>"]
    (folder / "added_tokens.json").write_text(json.dumps({t: PIECES + i for i, t in enumerate(added)}))
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    return folder


def write_lora(folder: Path, base: str, safetensors: bool = False, seed: int = 6) -> Path:
    """An adapter as peft 0.3 saved it, or in the safetensors of later releases."""
    import json

    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    settings = {
        "base_model_name_or_path": base, "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
        "init_lora_weights": True, "lora_alpha": 16, "lora_dropout": 0.05, "modules_to_save": None,
        "peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    draws = torch.Generator().manual_seed(seed)
    weights = {
        f"base_model.model.model.layers.{layer}.self_attn.{part}_proj.lora_{half}.weight": 0.5
        * torch.randn((8, 16) if half == "A" else (16, 8), generator=draws)
        for layer in range(2)
        for part in "qv"
        for half in "AB"
    }
    if safetensors:
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(weights, folder / "adapter_model.bin")
    return folder


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """A folder with SpeechGPT-7B-cm and SpeechGPT-7B-com beside each other: true files, narrow weights."""
    folder = tmp_path_factory.mktemp("published")
    write_checkpoint(folder / "SpeechGPT-7B-cm")
    write_lora(folder / "SpeechGPT-7B-com", "/somewhere/else/SpeechGPT-7B-cm")
    return folder


@pytest.fixture(scope="session")
def make_checkpoint():
    return write_checkpoint


@pytest.fixture(scope="session")
def make_lora():
    return write_lora


@pytest.fixture(scope="session")
def golden_cases() -> dict:
    import json

    return json.loads((GOLDEN / "upstream.json").read_text(encoding="utf-8"))
