"""Our LLaMA against transformers', and every way of doing a step against the plain one."""

import logging
import os
import subprocess
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from speechgpt import decode_steps
from speechgpt.decode_engine import Engine
from speechgpt.decode_steps import CapturedSteps, PlainSteps, best_way
from speechgpt.decoding import Decoding
from speechgpt.grammar import TurnGrammar
from speechgpt.llama_decoder import Cache, LlamaDecoder
from speechgpt.llama_sizes import LlamaSizes
from speechgpt.model import load_decoder, load_llama, load_trained
from speechgpt.model_dir import find_model, load_generator
from speechgpt.units.triton_works import triton_runs

ROPES = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    },
}  # fmt: skip
POSITIONS, ROWS = 512, 99


def llama(groups: int = 2, tied: bool = True, rope: str = "default") -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=ROWS, hidden_size=64, intermediate_size=88, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=groups, max_position_embeddings=POSITIONS, tie_word_embeddings=tied,
        initializer_range=0.1, rope_parameters=ROPES[rope],
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:  # which begin as ones, and would not be missed
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return model


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of the largest logit."""
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(
    "groups, tied, rope", [(4, True, "default"), (2, False, "llama3"), (1, True, "linear")]
)
@torch.inference_mode()
def test_logits_are_those_of_transformers(groups, tied, rope):
    model = llama(groups, tied, rope)
    decoder = LlamaDecoder.of_model(model)
    ids = torch.randint(ROWS, (1, 300), generator=torch.Generator().manual_seed(1))
    wanted = model(ids).logits
    cache = Cache(decoder, 1, POSITIONS)
    assert error(decoder.forward(ids, cache, last=False), wanted) < 1e-5
    cache = Cache(decoder, 1, POSITIONS)
    decoder.forward(ids[:, :100], cache)
    assert error(decoder.forward(ids[:, 100:200], cache, 100), wanted[:, 199]) < 1e-5
    for steps in (PlainSteps(decoder, cache), CapturedSteps(decoder, cache, "graph")):
        steps.begin(200, None)
        for place in range(200, 300):  # over the border of the first bucket
            assert error(steps(ids[:, place]), wanted[:, place]) < 1e-5
    assert error(decoder.to_transformers()(ids).logits, wanted) < 1e-6


@torch.inference_mode()
def test_padded_rows_are_those_of_single_ones():
    model = llama()
    decoder = LlamaDecoder.of_model(model)
    rows = [torch.randint(ROWS, (n,), generator=torch.Generator().manual_seed(n)) for n in (30, 21)]
    wanted, short = (model(row[None]).logits[0] for row in rows)  # L V
    cache = Cache(decoder, 2, 64)
    pads = torch.tensor([0, 9])
    ids = torch.stack([rows[0], torch.cat([torch.zeros(9, dtype=torch.int64), rows[1]])])
    found = decoder.forward(ids[:, :20], cache, 0, pads)
    assert error(found[0], wanted[19]) < 1e-5
    assert error(found[1], short[10]) < 1e-5
    for steps in (PlainSteps(decoder, cache), CapturedSteps(decoder, cache, "graph")):
        steps.begin(20, pads)
        for place in range(20, 30):
            found = steps(ids[:, place])
            assert error(found[0], wanted[place]) < 1e-5 and error(found[1], short[place - 9]) < 1e-5


@torch.inference_mode()
def test_half_precision_errs_no_more_than_transformers():
    model = llama(2, False)
    ids = torch.randint(ROWS, (1, 60), generator=torch.Generator().manual_seed(1))
    wanted = model(ids).logits
    model = model.to(torch.bfloat16)
    decoder = LlamaDecoder.of_model(model)
    found = decoder.forward(ids, Cache(decoder, 1, 64), last=False)
    assert error(found, wanted) < 1.5 * error(model(ids).logits.float(), wanted) < 0.05


def test_one_core_and_two_do_the_same(monkeypatch):
    decoder = LlamaDecoder.of_model(llama())
    found = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        with torch.inference_mode():
            steps = PlainSteps(decoder, Cache(decoder, 1, 64))
            steps.begin(0, None)
            found.append(torch.cat([steps(torch.tensor([token])) for token in range(20)]))
    assert error(*found) < 1e-5


def test_configs_that_mean_something_else_are_refused():
    config = llama().config.to_dict()
    sizes = LlamaSizes.from_config(config)
    assert (sizes.groups, sizes.width, sizes.fused) == (2, 16, 128)
    wrong = {
        "rope type 'yarn'": {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
        "rope type 'dynamic'": {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "without factor": {"rope_parameters": {"rope_type": "linear"}},
        "partial_rotary_factor": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "attention_bias is set": {"attention_bias": True},
        "hidden_act is 'gelu'": {"hidden_act": "gelu"},
        "4 heads of width 16 for 3": {"num_key_value_heads": 3},
    }
    for message, change in wrong.items():
        with pytest.raises(ValueError, match=f"where: {message}|{message}"):
            LlamaSizes.from_config({**config, **change}, "where")
    old = {k: v for k, v in config.items() if k not in ("rope_parameters", "head_dim")}
    linear = LlamaSizes.from_config(
        old | {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 5.0}
    )
    assert linear.rope == {"rope_type": "linear", "rope_theta": 5.0, "factor": 4.0}
    assert LlamaSizes.from_config(old).rope == {"rope_type": "default", "rope_theta": 10_000.0}


def greedy(engine: Engine, prompt: list[int], count: int) -> list[int]:
    found = []
    with torch.inference_mode(), engine.run([prompt], count) as run:
        for n in range(count):
            found += run.take(run.logits().argmax(-1), n + 1 < count)
    return found


def test_what_comes_again_is_not_read_again_and_changes_nothing():
    model = llama()
    decoder = LlamaDecoder.of_model(model)
    engine = Engine(decoder)
    drawn = torch.randint(ROWS, (400,), generator=torch.Generator().manual_seed(2)).tolist()
    prompt = drawn[:40]
    first = greedy(engine, prompt, 30)
    follow_up = [*prompt, *first[:20], *drawn[100:130]]
    for ids, reused in ((follow_up, 60), (follow_up, 89), (drawn[:10], 9), (drawn[300:], 0), (drawn, 0)):
        fresh = greedy(Engine(decoder), ids, 20)
        with torch.inference_mode(), engine.run([ids], 20) as run:
            assert run.reused == reused
        assert greedy(engine, ids, 20) == fresh
    reference = model.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False, eos_token_id=None)
    assert first == reference[0, 40:].tolist()


def test_a_second_run_at_the_same_time_disturbs_nothing():
    engine = Engine(LlamaDecoder.of_model(llama()))
    alone = [greedy(Engine(engine.decoder), prompt, 12) for prompt in ([1, 2, 3], [4, 5])]
    found: list[list[int]] = [[], []]
    with torch.inference_mode(), engine.run([[1, 2, 3]], 12) as a, engine.run([[4, 5]], 12) as b:
        for n in range(12):
            for run, ids in ((a, found[0]), (b, found[1])):
                ids += run.take(run.logits().argmax(-1), n < 11)
    assert found == alone
    assert greedy(engine, [1, 2, 3], 12) == alone[0]


@torch.inference_mode()
def test_a_run_that_is_never_ended_keeps_no_later_one_from_reuse():
    engine = Engine(LlamaDecoder.of_model(llama()))
    with engine.run([[1, 2, 3]], 12) as held:
        held.take(held.logits().argmax(-1), True)
        prompt = [4, 5, 6, 7]
        first = greedy(engine, prompt, 12)
        follow_up = [*prompt, *first, 8, 9]
        with engine.run([follow_up], 12) as run:
            assert run is not held and run.reused == len(prompt) + 11  # the last token was never read
        assert greedy(engine, follow_up, 12) == greedy(Engine(engine.decoder), follow_up, 12)
    assert greedy(engine, follow_up, 12) == greedy(Engine(engine.decoder), follow_up, 12)


def test_a_cache_that_is_full_doubles(monkeypatch):
    monkeypatch.setattr("speechgpt.decode_engine.FIRST_CAPACITY", 8)
    monkeypatch.setattr("speechgpt.decode_engine.SPARE", 2)
    decoder = LlamaDecoder.of_model(llama())
    copies, copied = [], decode_steps._parted
    monkeypatch.setattr(decode_steps, "_parted", lambda *given: copies.append(given) or copied(*given))
    engine = Engine(decoder)
    greedy(engine, [1, 2, 3], 2)
    capacity, before = engine._kept[False]._cache.capacity, held_by(decoder)
    small = greedy(engine, [1, 2, 3], 60)
    assert engine._kept[False]._cache.capacity >= 4 * capacity
    # The weights in parts are made once: to copy them at each growth would halt the answer.
    assert held_by(decoder) == before and len(copies) == 4 * decoder.sizes.layers + 1
    monkeypatch.undo()
    assert small == greedy(Engine(LlamaDecoder.of_model(llama())), [1, 2, 3], 60)


def held_by(decoder: LlamaDecoder) -> list[int]:
    """Addresses of its weights in parts."""
    return [t.data_ptr() for layers, head in decoder.parted.values() for t in (*sum(layers, ()), head)]


def test_ways_are_checked():
    decoder = LlamaDecoder.of_model(llama())
    assert best_way(decoder, 1) == "plain"
    with pytest.raises(ValueError, match="fast is 'very'"):
        best_way(decoder, 1, "very")


@pytest.mark.parametrize(
    "capability, error, way",
    [
        ((9, 0), None, "kernels"),
        ((7, 5), None, "graph"),
        ((9, 0), RuntimeError("Failed to find C compiler"), "graph"),
        ((8, 6), subprocess.CalledProcessError(1, "gcc"), "graph"),
        ((8, 0), ImportError("no triton"), "graph"),
    ],
)
def test_kernels_are_chosen_only_where_they_run(monkeypatch, caplog, capability, error, way):
    probed = []

    def probe(device):
        probed.append(device)
        if error:
            raise error

    kernels = ModuleType("speechgpt.decode_kernels")
    kernels.probe = probe
    monkeypatch.setitem(sys.modules, "speechgpt.decode_kernels", kernels)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    triton_runs.cache_clear()
    on_gpu = SimpleNamespace(device=torch.device("cuda", 0), sizes=SimpleNamespace(width=64))
    with caplog.at_level(logging.WARNING):
        found = [best_way(on_gpu, batch) for batch in (1, 1, 2)]
    triton_runs.cache_clear()
    assert found == [way, way, "graph"]
    assert len(probed) == (capability >= (8, 0))
    reason = str(error) if error else "compute capability 7.5, expected 8.0"
    assert [reason in record.getMessage() for record in caplog.records] == [True] * (way == "graph")


@pytest.mark.parametrize("question", ["what is two plus two", [3, 7, 3, 9, 200, 41, 3], "turn on the light"])
def test_the_shipped_model_says_what_it_says_under_transformers(mini, question):
    generator, model = mini
    prompt = generator.format.prompt_turn(question)
    kind = "text-speech" if isinstance(question, str) else "speech-speech"
    limit = 120
    generator.decoding = Decoding(max_new_tokens=limit)
    wanted = model.generate(
        torch.tensor([prompt]), max_new_tokens=limit, do_sample=False,
        logits_processor=[TurnGrammar(generator.vocabulary, kind, len(prompt), limit)],
    )[0, len(prompt) :].tolist()  # fmt: skip
    assert generator.generate_batch([prompt], kind) == [wanted] and len(wanted) > 20


@pytest.fixture(scope="module")
def mini():
    folder = find_model("mini").llm
    return load_generator(folder, device="cpu"), load_llama(folder)


def run_python(code: str, **environment: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


def test_kernels_equal_plain_steps_under_tritons_interpreter():
    pytest.importorskip("triton")
    code = """
import torch
from speechgpt.decode_kernels import probe
from speechgpt.decode_steps import CapturedSteps, PlainSteps
from speechgpt.decoding import Decoding
from speechgpt.grammar import TurnGrammar
from speechgpt.llama_decoder import Cache, LlamaDecoder
from speechgpt.llama_sizes import LlamaSizes
from speechgpt.model import load_decoder, load_llama, load_trained
from speechgpt.model_dir import find_model, load_generator
probe("cpu")
rope = {"rope_type": "default", "rope_theta": 1e4}
for groups in (4, 2, 1):
    sizes = LlamaSizes(101, 64, 88, 2, 4, groups, 16, 512, 1e-6, False, rope)
    decoder = LlamaDecoder.random(sizes, torch.float32, "cpu")
    for layer in decoder.layers:
        for tensor in vars(layer).values():
            tensor.mul_(8) if tensor.dim() == 2 else tensor.uniform_(0.5, 1.5)
    ids = torch.randint(101, (1, 304), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        caches = [Cache(decoder, 1, 512) for _ in range(2)]
        steps = [PlainSteps(decoder, caches[0]), CapturedSteps(decoder, caches[1], "kernels")]
        for cache, step in zip(caches, steps):
            decoder.forward(ids[:, :300], cache)
            step.begin(300, None)
        for place in range(300, 304):
            wanted, found = (step(ids[:, place]) for step in steps)
            assert (wanted - found).abs().max() < 1e-5 * wanted.abs().max(), groups
        cache = Cache(decoder, 1, 512)
        step = CapturedSteps(decoder, cache, "kernels")
        step.begin(0, None)  # nothing before it
        wanted = decoder.forward(ids[:, :1], Cache(decoder, 1, 512))
        assert (wanted - step(ids[:, 0])).abs().max() < 1e-5 * wanted.abs().max()
print("equal")
"""
    assert run_python(code, TRITON_INTERPRET="1").strip() == "equal"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("fast", ["graph", "kernels"])
def test_a_second_gpu_decodes_as_the_first(fast):
    found = []
    for number in (0, 1, 0):  # captures on one follow those on the other
        decoder = LlamaDecoder.of_model(llama()).to(f"cuda:{number}")
        found.append(greedy(Engine(decoder, fast), [1, 2, 3], 60))
        assert torch.cuda.current_device() == 0
    assert found[0] == found[1] == found[2]


def test_loading_to_generate_imports_no_transformers():
    code = """
import sys
from speechgpt.model_dir import find_model, load_generator
generator = load_generator(find_model("mini").llm, device="cpu")
generator.turn("what is two plus two")
print([m for m in ("transformers", "triton", "accelerate") if m in sys.modules])
"""
    assert run_python(code).strip() == "[]"


@pytest.mark.parametrize("layout", ["bin-shards", "safetensors-shards", "old-bin"])
def test_folders_of_every_layout_with_an_adapter_load_as_under_transformers(
    make_checkpoint, make_lora, tmp_path, layout
):
    folder = make_checkpoint(tmp_path / "cm", layout)
    lora = make_lora(tmp_path / "com", str(folder))
    ids = torch.tensor([[1, 32_661, 7, 33_001, 99]])
    for adapter in (None, lora):
        decoder, vocabulary = load_decoder(folder, "float32", adapter)
        model, same = load_trained(folder, "float32", adapter)
        assert vocabulary.describe() == same.describe()
        with torch.inference_mode():
            assert error(decoder.score(ids), model(ids).logits) < 1e-5
