"""Packs of rows: what is in them, and that they train what padded batches of the same rows train."""

from functools import partialmethod

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from speechgpt import linear_cross_entropy as head
from speechgpt.batches import IGNORED, TokenRows, collate
from speechgpt.packed_attention import documents_as_batch, packed_attention
from speechgpt.packed_model import learn_from_packs
from speechgpt.packs import PackedBatches, collate_pack, cut_rows, fill_packs

VOCABULARY = 40
PAD = 0


def drawn_rows(lengths: list[int], seed: int = 0) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Rows (ids, mask, kind), the second half of each supervised."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(1, VOCABULARY, n), np.arange(n) >= n // 2, 0) for n in lengths]


def small_llama(tied: bool = False, dropout: float = 0.0) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=24, max_position_embeddings=64, pad_token_id=PAD,
        tie_word_embeddings=tied, attention_dropout=dropout, initializer_range=0.3,
    ))  # fmt: skip


def with_adapter(model: LlamaForCausalLM) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    rows = list(range(30, VOCABULARY))
    settings = LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False,
        trainable_token_indices={"embed_tokens": rows, "lm_head": rows}, task_type="CAUSAL_LM",
    )  # fmt: skip
    torch.manual_seed(1)
    return get_peft_model(model, settings)


def loss_and_gradients(model, batch) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return float(loss.detach()), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


# Filling


@pytest.mark.parametrize("room", [150, 400, 4000])
def test_packs_hold_every_row_once_and_are_nearly_full(room):
    rng = np.random.default_rng(3)
    lengths = rng.integers(5, 120, size=3000)
    packs = fill_packs(lengths, rng.permutation(3000), room)
    assert sorted(row for pack in packs for row in pack) == list(range(3000))
    held = [int(lengths[pack].sum()) for pack in packs]
    assert max(held) <= room
    assert sum(held) / (len(held) * room) > 0.97


def test_a_row_longer_than_a_pack_is_a_pack_of_its_own():
    lengths = np.array([4, 30, 5, 3, 40, 2])
    packs = [sorted(p.tolist()) for p in fill_packs(lengths, np.arange(6), 10)]
    assert [1] in packs and [4] in packs
    assert sorted(row for pack in packs for row in pack) == list(range(6))
    assert all(len(pack) == 1 or lengths[pack].sum() <= 10 for pack in packs)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_epoch_has_the_same_number_of_packs_and_other_company(world_size):
    lengths = np.random.default_rng(0).integers(4, 60, size=300)
    shares = [PackedBatches(lengths, 200, seed=1, rank=r, world=world_size) for r in range(world_size)]
    orders = []
    for epoch in range(3):
        for share in shares:
            share.set_epoch(epoch)
        found = [list(share) for share in shares]
        assert {len(f) for f in found} == {len(shares[0])}
        assert {row for f in found for pack in f for row in pack} == set(range(300))
        assert all(lengths[pack].sum() <= 200 for f in found for pack in f)
        orders.append(found[0])
    company = [{frozenset(pack) for pack in order} for order in orders]
    assert len(company[0] & company[1]) < len(company[0]) / 2, "rows of a length change places"
    shares[0].set_epoch(1)
    again = PackedBatches(lengths, 200, seed=1, world=world_size)
    again.set_epoch(1)
    assert list(shares[0]) == orders[1] == list(again), "the order is a function of seed and epoch"


def test_long_rows_are_cut_into_documents_and_lose_nothing():
    ids = np.arange(23)
    rows = TokenRows.join([(ids, ids > 0, "units"), (ids[:5], ids[:5] > 0, "text")])
    pieces = cut_rows(rows, 10)
    assert pieces.lengths.tolist() == [10, 10, 3, 5]
    assert pieces.ids.tolist() == [*range(23), *range(5)]
    assert pieces.count() == {"units": 3, "text": 1}


def test_a_pack_says_where_its_documents_begin_and_what_is_learnt():
    rows = [
        (np.array([5, 6, 7]), np.array([False, True, True]), 0),
        (np.array([8, 9]), np.array([True, True]), 0),
    ]
    pack = collate_pack(rows, pad_id=PAD, tokens=12, longest=3)
    assert pack["input_ids"].tolist() == [[5, 6, 7, 8, 9] + [PAD] * 11]
    assert pack["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]]
    assert pack["bounds"].tolist() == [0, 3, 5, 8, 11, 14, 16] and pack["bounds"].dtype == torch.int32
    assert pack["labels"].tolist() == [[IGNORED, 6, 7, IGNORED, 9] + [IGNORED] * 11]
    assert pack["predictors"][:3].tolist() == [0, 1, 3] and pack["targets"][:3].tolist() == [6, 7, 9]
    assert (pack["targets"][3:] == IGNORED).all() and len(pack["targets"]) == 16
    assert pack["longest"] == 128


def test_documents_go_to_a_padded_batch_and_come_back():
    bounds = torch.tensor([0, 3, 4, 9])
    places, home = documents_as_batch(bounds)
    assert (
        places.shape == (3, 5)
        and places[0, :3].tolist() == [0, 1, 2]
        and places[2].tolist() == [*range(4, 9)]
    )
    assert torch.arange(9)[places.flatten()][home].tolist() == list(range(9))


# The same training


@pytest.mark.parametrize("chunk", [3, 2048])
def test_head_and_loss_in_one_are_the_cross_entropy(monkeypatch, chunk):
    monkeypatch.setattr(head, "CHUNK", chunk)
    torch.manual_seed(0)
    hidden, weight = torch.randn(10, 8, requires_grad=True), torch.randn(21, 8, requires_grad=True)
    targets = torch.tensor([3, 20, IGNORED, 0, 5, 5, IGNORED, 1, 2, 9])
    expected = F.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORED, reduction="sum")
    wanted = torch.autograd.grad(expected * 0.3, [hidden, weight])
    found = head.linear_cross_entropy(hidden, weight, targets)
    assert torch.allclose(found, expected, rtol=1e-6)
    for a, b in zip(torch.autograd.grad(found * 0.3, [hidden, weight]), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    frozen = head.linear_cross_entropy(hidden, weight.detach(), targets)
    [alone] = torch.autograd.grad(frozen * 0.3, [hidden])
    assert torch.allclose(alone, wanted[0], atol=1e-6)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_pack_has_the_loss_and_the_gradients_of_the_padded_batch(tied, adapted, checkpointing):
    if tied and adapted:
        pytest.skip("rows of a tied table are named once")
    rows = drawn_rows([7, 19, 12, 3, 26])
    model = small_llama(tied)
    model = with_adapter(model) if adapted else model
    model.train()
    expected, wanted = loss_and_gradients(model, collate(rows, PAD))
    learn_from_packs(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    pack = collate_pack(rows, PAD, tokens=96, longest=26)
    found, gradients = loss_and_gradients(model, pack)
    assert found == pytest.approx(expected, rel=1e-6)
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0, name
        assert (gradients[name] - gradient).abs().max() < 1e-6 * max(1.0, float(gradient.abs().max())), name


def test_plain_batches_still_give_plain_logits():
    batch = collate(drawn_rows([7, 12]), PAD)
    model = small_llama()
    expected = model(**batch)
    learn_from_packs(model)
    found = model(**batch)
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.loss, expected.loss)


def test_no_row_of_a_pack_has_any_influence_on_another():
    rows = drawn_rows([9, 14, 11])
    model = small_llama()
    learn_from_packs(model)
    pack = collate_pack(rows, PAD, tokens=48, longest=14)
    only_second = pack["labels"].clone()
    only_second[:, :9] = only_second[:, 23:] = IGNORED
    before = torch.nonzero(only_second[0] != IGNORED)[:, 0] - 1
    embedded = model.get_input_embeddings()(pack["input_ids"]).detach().requires_grad_()
    places, home = documents_as_batch(pack["bounds"])
    hidden = model.model(
        inputs_embeds=embedded, position_ids=pack["position_ids"], bounds=pack["bounds"], places=places,
        home=home, use_cache=False,
    ).last_hidden_state[0]  # fmt: skip
    loss = head.linear_cross_entropy(hidden[before], model.lm_head.weight, only_second[0, before + 1])
    [gradient] = torch.autograd.grad(loss, [embedded])
    assert (gradient[0, :9] == 0).all() and (gradient[0, 23:] == 0).all()
    assert gradient[0, 9:22].abs().amax(dim=1).min() > 0
    with torch.no_grad():
        other = [(np.full(9, 2), *rows[0][1:]), rows[1], (np.full(11, 3), *rows[2][1:])]
        losses = []
        for given in (rows, other):
            batch = collate_pack(given, PAD, tokens=48, longest=14)
            chosen = (batch["predictors"] >= 9) & (batch["predictors"] < 23)
            batch["targets"] = torch.where(chosen, batch["targets"], IGNORED)
            losses.append(model(**batch).loss)
    assert torch.equal(*losses)


def test_attention_dropout_drops_within_packs_too():
    pack = collate_pack(drawn_rows([20, 20]), PAD, tokens=48, longest=20)
    model = small_llama(dropout=0.5).train()
    learn_from_packs(model)
    assert model(**pack).loss != model(**pack).loss
    model.eval()
    assert model(**pack).loss == model(**pack).loss


@pytest.mark.parametrize("adapted", [False, True])
def test_layers_that_are_compiled_have_the_same_loss(monkeypatch, adapted):
    """The tracing alone, without a compiler of machine code; a layer is one graph, with an adapter too."""
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        partialmethod(torch.nn.Module.compile, backend="aot_eager", fullgraph=True),
    )
    monkeypatch.setattr(head, "compiled_softmax_errors", head.softmax_errors)
    packs = [collate_pack(drawn_rows(n), PAD, tokens=64, longest=30) for n in ([7, 19, 12], [30, 9, 9, 9])]
    model = with_adapter(small_llama()) if adapted else small_llama()
    learn_from_packs(model)
    expected = [loss_and_gradients(model, pack) for pack in packs]
    compiled = with_adapter(small_llama()) if adapted else small_llama()
    learn_from_packs(compiled, compiled=True)
    for pack, (loss, gradients) in zip(packs, expected, strict=True):
        found, others = loss_and_gradients(compiled, pack)
        assert found == pytest.approx(loss, rel=1e-6)
        for name, gradient in gradients.items():
            assert (others[name] - gradient).abs().max() < 1e-6 * max(1.0, float(gradient.abs().max())), name


def varlen_by_mask(q, k, v, bounds, _, longest, longest_key, *, scale, window_size):
    """What the flash kernels compute, for a CPU: (L, H, E), (L, G, E) to (L, H, E)."""
    assert window_size == (-1, 0) and longest == longest_key == 128
    places = torch.arange(len(q))
    document = torch.bucketize(places, bounds[1:], right=True)  # L
    allowed = (document[:, None] == document) & (places[:, None] >= places)  # L L
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, allowed, scale=scale, enable_gqa=True)
    return mixed[0].transpose(0, 1)


def test_layers_are_compiled_once_for_packs_of_any_number_of_documents(monkeypatch):
    """The path of the flash kernels, with another kernel in their place."""
    from torch._dynamo.testing import CompileCounterWithBackend

    monkeypatch.setattr("speechgpt.packed_model.takes_flash", lambda *_: True)
    monkeypatch.setattr("speechgpt.packed_attention.varlen_attn", varlen_by_mask)
    monkeypatch.setattr(head, "compiled_softmax_errors", head.softmax_errors)
    counter = CompileCounterWithBackend("aot_eager")
    traced = partialmethod(torch.nn.Module.compile, backend=counter, fullgraph=True)
    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    torch._dynamo.reset()
    model, plain = small_llama(), small_llama()
    learn_from_packs(model, compiled=True)
    for lengths in ([7, 19, 12], [30, 9, 9, 9], [5] * 12, [50, 2]):
        rows = drawn_rows(lengths)
        found, gradients = loss_and_gradients(model, collate_pack(rows, PAD, tokens=64, longest=60))
        expected, wanted = loss_and_gradients(plain, collate(rows, PAD))
        assert found == pytest.approx(expected, rel=1e-6)
        for name, gradient in wanted.items():
            assert (gradients[name] - gradient).abs().max() < 1e-6 * max(1.0, float(gradient.abs().max()))
    assert counter.frame_count == 1, "one layer, once"


def test_half_precision_products_keep_the_loss():
    """Under autocast, as on a GPU: float32 weights, and a bfloat16 base with its adapter."""
    rows = drawn_rows([7, 19, 12, 26])
    pack = collate_pack(rows, PAD, tokens=64, longest=26)
    for model in (small_llama(), with_adapter(small_llama().to(torch.bfloat16))):
        with torch.autocast("cpu", torch.bfloat16):
            expected, wanted = loss_and_gradients(model, collate(rows, PAD))
            learn_from_packs(model)
            found, gradients = loss_and_gradients(model, pack)
        assert found == pytest.approx(expected, rel=0.01)
        for name, gradient in wanted.items():
            assert gradients[name].dtype == gradient.dtype
            assert (gradients[name] - gradient).abs().max() < 0.1 * gradient.abs().max(), name


# On a GPU

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def attended(flash: bool, dropout: float = 0.0) -> list[torch.Tensor]:
    """Mixed values (1, L, H, E) and the gradients of queries, keys and values, from the same draws."""
    torch.manual_seed(0)
    module = torch.nn.Module()
    shapes = [(1, heads, 512, 64) for heads in (8, 2, 2)]
    inputs = [torch.randn(s, device="cuda", dtype=torch.bfloat16, requires_grad=True) for s in shapes]
    bounds = torch.tensor([0, 100, 101, 300, 512], dtype=torch.int32, device="cuda")
    where = {} if flash else dict(zip(("places", "home"), documents_as_batch(bounds), strict=True))
    mixed, _ = packed_attention(
        module, *inputs, None, dropout=dropout, scaling=0.125, bounds=bounds, longest=256, **where
    )
    weights = torch.randn(mixed.shape, device="cuda")
    return [mixed, *torch.autograd.grad((mixed.float() * weights).sum(), inputs)]


@cuda
def test_flash_attention_of_documents_is_that_of_a_padded_batch():
    for found, expected in zip(attended(True), attended(False), strict=True):
        error = (found.float() - expected.float()).abs().max()
        assert error < 0.02 * expected.float().abs().max()


@cuda
def test_flash_attention_drops_as_asked():
    kept, dropped = attended(True)[0].float(), attended(True, dropout=0.3)[0].float()
    assert (dropped - kept).abs().mean() > 0.05 * kept.abs().mean()
    assert (dropped.mean() - kept.mean()).abs() < 0.05, "what is kept is scaled up"


@cuda
def test_a_compiled_model_learns_on_a_gpu_what_an_eager_one_does_from_padded_batches():
    """In bf16 it errs no more from float32's gradients than the eager one does on the padded batch."""
    rows = drawn_rows([70, 190, 120, 30, 260, 33])
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    sizes["initializer_range"] = 0.05  # at 0.3 attention is so sharp that bf16 errs by 38 %
    results = []
    for packed, half in ((False, False), (False, True), (True, True)):
        torch.manual_seed(0)
        config = LlamaConfig(**small_llama().config.to_dict() | sizes | {"max_position_embeddings": 512})
        model = LlamaForCausalLM(config).cuda()
        batch = collate(rows, PAD)
        if packed:
            learn_from_packs(model, compiled=True)
            batch = collate_pack(rows, PAD, tokens=768, longest=260)
        batch = {k: v.cuda() if torch.is_tensor(v) else v for k, v in batch.items()}
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            results.append(loss_and_gradients(model, batch))
    (exact, wanted), (padded_loss, padded), (found, gradients) = results
    assert found == pytest.approx(exact, rel=0.005) and padded_loss == pytest.approx(exact, rel=0.005)
    # Rounding falls on single tensors as it likes, so all of them are compared; a row that sees another
    # one's tokens, or a lost row, changes every tensor by its own size.
    errors = {
        name: ((padded[name] - g).norm().item(), (gradients[name] - g).norm().item(), g.norm().item())
        for name, g in wanted.items()
    }
    usual, ours, size = (sum(error[i] ** 2 for error in errors.values()) ** 0.5 for i in range(3))
    assert usual < 0.1 * size and ours < 1.25 * usual, (usual, ours, size)
    far = {name: error for name, error in errors.items() if error[1] > max(2 * error[0], 0.05 * error[2])}
    assert not far, far
