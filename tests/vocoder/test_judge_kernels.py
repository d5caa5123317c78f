"""The discriminators' kernels do what PyTorch does in their place, and compile for a GPU unseen."""

import pytest
import torch

from speechgpt.units.triton_works import triton_runs
from speechgpt.vocoder import discriminators, judge_shapes
from speechgpt.vocoder.judge_shapes import form_of

INTERPRETED = """
import torch
from speechgpt.vocoder import judge_layers
from speechgpt.vocoder.judge_kernels import Place, Widen, probe
from speechgpt.vocoder.judge_shapes import form_of
from speechgpt.vocoder.judge_weights import widen
def check(found, wanted, what):
    for one, two in zip(found, wanted, strict=True):
        assert one.shape == two.shape and (one - two).abs().max() <= 1e-5 * two.abs().max(), what
torch.manual_seed(0)
scale = [(1, 16, 1, 15, 1), (16, 16, 4, 41, 2), (16, 32, 16, 41, 2), (32, 32, 16, 41, 1), (32, 32, 1, 5, 1)]
period = [(1, 16, 1, 5, 3), (16, 24, 1, 5, 3), (24, 144, 1, 5, 3), (144, 48, 1, 5, 3), (48, 1, 1, 3, 1)]
for plan, reflect in ((scale, False), (period, True)):
    forms = [form_of(*layer) for layer in plan]
    for n, (source, target) in enumerate([*zip(forms, forms[1:])] * (3 if reflect else 1)):
        compare, length = n % 2 == 0, 23 + n % 3
        y = torch.randn(2, 25 // source.block + 2, source.channels_out * source.block, requires_grad=True)
        bias = torch.randn(source.channels_out, requires_grad=True)
        other = torch.randn(2, target.rows_in(length), source.channels_out * target.samples)
        other = other if compare else None
        results, towards = [], None
        for function in (Place.apply, judge_layers._placed):
            arguments = (other, source, target, length, reflect)
            if function is judge_layers._placed:
                arguments = (source, target, length, reflect, other)
            out = function(y, bias, *arguments)
            z, distance = out if isinstance(out, tuple) else (out, None)
            towards = torch.randn_like(z) if towards is None else towards
            loss = (z * towards).sum() + (0 if distance is None else 300 * distance)
            results.append([z, *([distance] * compare), *torch.autograd.grad(loss, [y, bias])])
        check(*results, ("place", source, target))
    for n, form in enumerate(forms):
        v = torch.randn(form.channels_out, form.inputs, form.kernel)
        if n % 3 == 0:
            v = v.transpose(1, 2).contiguous().transpose(1, 2)
        for kind in ("plain", "weight", "spectral")[n % 3 :][:2]:
            v.requires_grad_(True)
            norms, singular = [], None
            if kind == "weight":
                norms = [torch.rand(len(v), 1, 1, requires_grad=True)]
            if kind == "spectral":
                singular = torch.randn(len(v)), torch.randn(v[0].numel())
                v = v.detach().contiguous().requires_grad_(True)
                sigma = singular[0] @ v.detach().flatten(1) @ singular[1]
            g = norms[0] if norms else sigma if singular else None
            results, towards = [], None
            for function in (Widen.apply, widen):
                wide = function(v, g, singular, form, torch.float32)
                towards = torch.randn_like(wide) if towards is None else towards
                results.append([wide, *torch.autograd.grad((wide * towards).sum(), [v, *norms])])
            assert results[0][1].stride() == v.stride()
            check(*results, (kind, form))
probe(torch.device("cpu"))
print("equal")
"""


def test_the_kernels_do_what_pytorch_does(interpreted):
    interpreted(INTERPRETED)


def make_judges(width: float, zeros: bool) -> discriminators.Judges:
    pytest.importorskip("speechbrain.lobes.models.HifiGAN")
    torch.manual_seed(0)
    config = discriminators.DiscriminatorConfig(period_width=width, scale_width=width, zero_padding=zeros)
    return discriminators.build_discriminators(config)


@pytest.fixture
def gpu(monkeypatch):
    """As if every tensor were on a GPU of capability 8.0."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    triton_runs.cache_clear()
    yield
    triton_runs.cache_clear()


@pytest.mark.parametrize("lacking", ["capability", "compiler"])
def test_where_triton_does_not_run_pytorch_computes(gpu, monkeypatch, caplog, lacking):
    def no_compiler(device):
        raise RuntimeError("Failed to find C compiler")

    if lacking == "capability":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    else:
        monkeypatch.setattr(judge_shapes, "PROBE", no_compiler)
    judges = make_judges(1 / 16, zeros=True)
    with torch.autocast("cpu", torch.bfloat16):
        scores = judges.scores(torch.randn(1, 1, 1200))
        sum(s.square().mean() for s in scores).backward()
    assert all(p.grad.isfinite().all() for p in judges.parameters())
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"Triton's kernels cannot be used, {judge_shapes.WITHOUT_KERNELS}: "
    )


def test_the_kernels_are_for_half_precision_where_triton_runs(gpu, monkeypatch):
    tried, tensor = [], torch.zeros(1)
    monkeypatch.setattr(judge_shapes, "PROBE", tried.append)
    assert not judge_shapes.on_kernels(tensor, torch.float32) and not tried
    assert judge_shapes.on_kernels(tensor, torch.bfloat16) and judge_shapes.on_kernels(tensor, torch.float16)
    assert tried == [tensor.device]
    monkeypatch.setattr(torch.Tensor, "is_cuda", False)
    assert not judge_shapes.on_kernels(tensor, torch.bfloat16)


@pytest.mark.parametrize(("first", "second"), [
    ((1, 128, 1, 15, 1), (128, 128, 4, 41, 2)),
    ((128, 128, 4, 41, 2), (128, 256, 16, 41, 2)),
    ((1, 32, 1, 5, 3), (32, 128, 1, 5, 3)),
])  # fmt: skip
def test_numbers_move_sixteen_bytes_at_once(first, second, compiled_for_gpu):
    from speechgpt.vocoder import judge_kernels

    one, two = form_of(*first), form_of(*second)
    constants = {"channels": one.channels_out, "r": one.block, "o": one.outputs, "q": two.samples}
    constants |= {"c": two.inputs, "half": two.half, "reflect": True, "compare": True, "learns": True}
    constants |= {"slope": 0.1, "run": 8, "block_l": judge_kernels.LINES, "block_w": judge_kernels.COLUMNS}
    types = dict.fromkeys(["y", "z", "against", "gz", "gy"], "*bf16")
    types |= dict.fromkeys(["bias", "parts", "gdistance", "sums"], "*fp32") | {"share": "fp32"}
    for kernel in (judge_kernels._place, judge_kernels._place_back):
        compiled = compiled_for_gpu(kernel, types, constants)
        assert "global.b16" not in compiled.asm["ptx"] and "ld.global.v4" in compiled.asm["ptx"]


def settled(width: float, zeros: bool) -> tuple[discriminators.Judges, torch.Tensor, torch.Tensor]:
    """Discriminators whose spectral norm moves no more, and two sounds (2, 1, 2411)."""
    judges = make_judges(width, zeros)
    real, fake = (0.1 * torch.randn(2, 1, 2411) for _ in range(2))
    with torch.no_grad():
        for _ in range(20):  # or the spectral norms are as they were drawn: of any size, near 0 too
            judges.scores(real)
    return judges.eval(), real, fake


def judged(judges: discriminators.Judges, real: torch.Tensor, fake: torch.Tensor) -> list[torch.Tensor]:
    """Each one's scores, each one's gradient, the distance of the features and its gradient."""
    scores = judges.requires_grad_(True).scores(real)
    judge_of = [tuple(name.split(".")[:3:2]) for name, _ in judges.named_parameters()]
    loss = sum((s - 1).square().mean() for s in scores)
    gradients = list(zip(torch.autograd.grad(loss, list(judges.parameters())), judge_of, strict=True))
    each = [torch.cat([g.flatten() for g, j in gradients if j == judge]) for judge in dict.fromkeys(judge_of)]
    assert len(each) == len(scores) == 8
    sound = fake.clone().requires_grad_(True)
    _, distance = judges.requires_grad_(False).compare(sound, real)
    parts = [*scores, *each, distance, *torch.autograd.grad(distance, sound)]
    return [part.detach().float().cpu() for part in parts]


def check_near(found: list[torch.Tensor], exact: list[torch.Tensor], limit: float) -> None:
    errors = [((a - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]
    assert all(error < limit for error in errors), str(errors)  # false of NaN too


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("width", [1 / 4, 1 / 2])
def test_rows_and_half_precision_find_what_plain_convolutions_do(monkeypatch, zeros, width):
    judges, real, fake = settled(width, zeros)
    exact = judged(judges, real, fake)
    with torch.autocast("cpu", torch.bfloat16):
        check_near(judged(judges, real, fake), exact, 0.06)
    monkeypatch.setattr(discriminators, "on_kernels", lambda *_: True)  # the rows, but PyTorch's passes
    check_near(judged(judges, real, fake), exact, 1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        check_near(judged(judges, real, fake), exact, 0.06)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("width", [1 / 4, 1 / 2, 1])
def test_on_a_gpu(monkeypatch, zeros, width):
    """float32 finds what a CPU does; bf16, whose passes are kernels, what float32 does but for rounding."""
    judges, real, fake = settled(width, zeros)
    exact = judged(judges, real, fake)
    judges.to("cuda")
    real, fake = real.cuda(), fake.cuda()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    check_near(judged(judges, real, fake), exact, 1e-3)
    with torch.autocast("cuda", torch.bfloat16):
        assert discriminators.on_kernels(real, torch.bfloat16)
        check_near(judged(judges, real, fake), exact, 0.06)
