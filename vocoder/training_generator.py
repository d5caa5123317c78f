"""`UnitVocoder.generate` for training on a GPU: the same sums and gradients, channels innermost all along.

Convolutions are cuDNN's, every one dense and about 128 channels wide or more (`training_grid`). What stands
around them (bias, leaky ReLU, residual, the sum over blocks, the change of order) is one pass forward and one
backward a convolution (`training_passes`). Only what the convolutions read is kept for the backward pass: a
leaky ReLU's sign is that of its output.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parametrize

from speechgpt.units.triton_works import probe_of, triton_runs
from speechgpt.vocoder.generator import LAST_SLOPE, SLOPE, UnitVocoder
from speechgpt.vocoder.training_grid import Grid
from speechgpt.vocoder.training_passes import join, last, last_gradient, split
from speechgpt.vocoder.training_weights import Weights, rows_in

PROBE = probe_of("speechgpt.vocoder.triton_kernels")

Block = list[int]  # the dilations of a residual block's pairs


def fits(model: UnitVocoder) -> bool:
    """Whether `TrainingGenerator` can do it: weight norm, odd kernels, no block without convolutions."""
    config = model.config
    plain = all(k % 2 for k in config.resblock_kernels) and all(config.resblock_dilations)
    return plain and all(parametrize.is_parametrized(c, "weight") for c in model._convolutions())


def fast_generate(model: UnitVocoder) -> Callable[[Tensor], Tensor]:
    """A `TrainingGenerator` on a GPU; `model.generate` where it does not fit, or Triton cannot compile."""
    fast = model.device.type == "cuda" and fits(model)
    if fast and triton_runs(PROBE, model.device, "cuDNN trains the generator alone"):
        return TrainingGenerator(model)
    return model.generate


class TrainingGenerator:
    """Called as `UnitVocoder.generate` without lengths, on the model's parameters as they are then."""

    def __init__(self, model: UnitVocoder):
        if not fits(model):
            raise ValueError("the generator needs weight norm (add_weight_norm) and odd resblock_kernels")
        self.model = model
        inner = [c for b in model.resblocks for pair in zip(b.convs1, b.convs2, strict=True) for c in pair]
        self.convolutions = [model.conv_pre, *model.ups, *inner]
        rows = [1] * (1 + len(model.ups)) + [rows_in(c) for c in inner]
        self.weights = Weights(self.convolutions, rows)
        self.dilations = model.config.resblock_dilations

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, D, N) embedded frames -> (B, 1, N * hop) float32, or under autocast its type inside."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        with torch.autocast(kind, enabled=False):
            return self._generate(x.to(dtype).transpose(1, 2).contiguous(), dtype).unsqueeze(1)  # B 1 N*hop

    def _generate(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x (B, N, D) -> (B, N * hop)."""
        weights = self.weights(dtype)
        biases = [conv.bias for conv in self.convolutions]
        model, stages = self.model, len(self.model.ups)
        x = F.conv2d(_image(x), weights[0], padding=(weights[0].shape[2] // 2, 0))  # B C N 1
        x = _Activate.apply(_rows(x), biases[0], SLOPE)  # B N C
        begin = 1 + stages
        pairs = [(i, d) for i, block in enumerate(self.dilations) for d in block]
        for stage, up in enumerate(model.ups):
            stride, padding = (up.stride[0], 1), (up.padding[0], 0)
            x = F.conv_transpose2d(_image(x), weights[1 + stage], None, stride, padding)  # B C T 1
            end = begin + 2 * len(pairs)
            slope = SLOPE if stage < stages - 1 else 1.0
            inner = [*weights[begin:end], *biases[begin:end]]
            x = _Stage.apply(self.dilations, slope, _rows(x), biases[1 + stage], *inner)  # B T C
            begin = end
        post = model.conv_post
        return _Last.apply(x, post.weight[0].t().contiguous().float(), post.bias.float())  # B N*hop


def _image(x: Tensor) -> Tensor:
    """x (B, T, C) -> (B, C, T, 1), channels innermost."""
    return x.unsqueeze(2).permute(0, 3, 1, 2)  # in this way cuDNN sees its layout in the strides


def _rows(image: Tensor) -> Tensor:
    """The reverse of `_image`."""
    return image.permute(0, 2, 3, 1).squeeze(2).contiguous()


class _Activate(torch.autograd.Function):
    """y (B, T, C) -> leaky(y + bias)."""

    @staticmethod
    def forward(ctx, y: Tensor, bias: Tensor, slope: float) -> Tensor:
        grid = Grid(y.shape[1])
        active = join(y, grid, bias, grid, slope=slope, grid=grid)[1]
        ctx.grid, ctx.slope = grid, slope
        ctx.save_for_backward(active)
        return active

    @staticmethod
    def backward(ctx, grad: Tensor):
        grid = ctx.grid
        out, sums = split(grad.contiguous(), *ctx.saved_tensors, grid, grid, grid, slope=ctx.slope)
        return out, sums.sum(0), None


class _Last(torch.autograd.Function):
    """x (B, T, C), weight (k, C), bias (1,) -> (B, T): tanh of the last convolution of leaky x."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        sound = last(x, weight, bias, LAST_SLOPE)
        ctx.save_for_backward(sound, x, weight)
        return sound

    @staticmethod
    def backward(ctx, grad: Tensor):
        return last_gradient(grad.contiguous(), *ctx.saved_tensors, LAST_SLOPE)


class _Stage(torch.autograd.Function):
    """y (B, T, C) of an upsampling -> leaky(mean of the residual blocks of y + bias).

    `parameters`: the wide weights of every block's pairs in turn, then as many biases.
    """

    @staticmethod
    def forward(
        ctx, dilations: list[Block], slope: float, y: Tensor, bias: Tensor, *parameters: Tensor
    ) -> Tensor:
        weights, biases = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]
        length, rows = y.shape[1], weights[0].shape[0] // y.shape[2]
        time, plain = Grid(length), Grid(length, rows)
        first = {block[0]: Grid(length, rows, block[0]) for block in dilations}
        begins, x = {}, None
        for dilation, grid in first.items():
            kept, begins[dilation] = join(y, time, bias, plain, keep=x is None, slope=SLOPE, grid=grid)
            x = kept if x is None else x
        number, total, saved, count = 0, None, [], len(dilations)
        for n, block in enumerate(dilations):
            h, a = x, begins[block[0]]
            for pair, dilation in enumerate(block):
                grid, end = Grid(length, rows, dilation), pair == len(block) - 1
                y = _convolve(grid, a, weights[number])
                inner = join(y, grid, biases[number], plain, slope=SLOPE, grid=plain)[1]
                saved += [a, inner]
                y, bias = _convolve(plain, inner, weights[number + 1]), biases[number + 1]
                number += 2
                if not end:
                    following = Grid(length, rows, block[pair + 1])
                    h, a = join(y, plain, bias, plain, h, keep=True, slope=SLOPE, grid=following)
            mean, out = (1 / count, time) if n == count - 1 else (1.0, None)
            total, active = join(y, plain, bias, plain, h, total, mean, out is None, slope, out)
        ctx.dilations, ctx.slope, ctx.grids = dilations, slope, (time, plain)
        ctx.save_for_backward(active, *saved, *weights)
        return active

    @staticmethod
    def backward(ctx, grad: Tensor):
        (time, plain), dilations = ctx.grids, ctx.dilations
        active, *rest = ctx.saved_tensors
        saved, weights = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        longest = max(Grid(plain.length, plain.rows, d).stored for block in dilations for d in block)
        whole, whole_sums = split(
            grad.contiguous(), active, time, plain, plain, None, None, 1 / len(dilations), ctx.slope, longest
        )  # B S C
        number, total, sums, grads = len(saved), None, [None] * len(saved), [None] * len(saved)
        for n in reversed(range(len(dilations))):
            g, g_sums = whole, whole_sums
            for pair, dilation in reversed(list(enumerate(dilations[n]))):
                number -= 2
                grid = Grid(plain.length, plain.rows, dilation)
                a, inner = saved[number], saved[number + 1]
                sums[number + 1] = g_sums
                gi, grads[number + 1] = _convolve_gradient(plain, g, inner, weights[number + 1])
                gi, sums[number] = split(gi, inner, plain, plain, grid, slope=SLOPE, longest=longest)
                gi, grads[number] = _convolve_gradient(grid, gi, a, weights[number])
                more = total if pair == 0 else None
                g, g_sums = split(gi, a, grid, plain, plain, g, more, 1.0, SLOPE, longest)
            total, total_sums = g, g_sums
        *bias_grads, bias_grad = torch.stack([*sums, total_sums]).sum(1).unbind()  # n+1 C
        # The blocks' last biases have one gradient between them, but each needs its own memory.
        bias_grads = [b.clone() if sums[i] is whole_sums else b for i, b in enumerate(bias_grads)]
        return None, None, plain.read(total), bias_grad, *grads, *bias_grads


def _convolve(grid: Grid, x: Tensor, weight: Tensor) -> Tensor:
    """x (B, S, C) in the order `grid` -> (B, S, C), without bias."""
    padding = (weight.shape[2] // 2, 0)
    return grid.stacked(F.conv2d(grid.image(x), weight, None, 1, padding), x.shape[2])


def _convolve_gradient(grid: Grid, grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight."""
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grid.image(grad), grid.image(x), weight, None, [1, 1], [weight.shape[2] // 2, 0], [1, 1],
        False, [0, 0], 1, [True, True, False],
    )  # fmt: skip
    return grid.stacked(grad_x, x.shape[2]), grad_weight
