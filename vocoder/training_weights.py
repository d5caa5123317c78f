"""All the generator's weights under weight norm, made in one pass, wide ones for `Grid`'s images.

Row q of a wide convolution's rows * C outputs is the convolution's row, shifted by its place among the
neighbours: a Toeplitz block. The gradient of the convolution's row is the sum over those copies.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from speechgpt.vocoder.training_grid import rows_of
from speechgpt.vocoder.training_passes import on_kernels

ALIGNMENT = 64  # numbers: 128 bytes, where a weight may begin


@dataclass(frozen=True)
class WeightForm:
    """A weight (O, I, k) over rows of neighbours: (rows * O, rows * I, taps, 1)."""

    outputs: int
    inputs: int
    kernel: int
    rows: int = 1

    @property
    def taps(self) -> int:
        """Rows of neighbours that one row of outputs sees."""
        if self.rows == 1:
            return self.kernel
        return 2 * -(-(self.kernel // 2) // self.rows) + 1

    @property
    def shift(self) -> int:
        """Positions of the window before the first tap of the first output."""
        return self.taps // 2 * self.rows - self.kernel // 2 if self.rows > 1 else 0

    @property
    def stored(self) -> tuple[int, int, int]:
        """(rows * O, taps, rows * I), as it lies in memory."""
        return self.rows * self.outputs, self.taps, self.rows * self.inputs

    def widen(self, weight: Tensor) -> Tensor:
        """weight (O, I, k) -> (rows * O, rows * I, taps, 1)."""
        window = self.taps * self.rows
        weight = weight.transpose(1, 2)  # O k I
        copies = [
            F.pad(weight, (0, 0, self.shift + row, window - self.shift - row - self.kernel))
            for row in range(self.rows)
        ]
        return self.view(torch.stack(copies).reshape(-1))  # rows O, window, I

    def view(self, flat: Tensor) -> Tensor:
        """The numbers as they lie in memory as cuDNN's weight, channels innermost."""
        outputs, taps, inputs = self.stored
        return flat.view(outputs, taps, 1, inputs).permute(0, 3, 1, 2)  # rows*O rows*I taps 1


class Weights:
    """The convolutions' weights, in the order given; `rows`: for each, neighbours of a row."""

    def __init__(self, convolutions: list[nn.Module], rows: list[int]):
        for conv in convolutions:
            if not parametrize.is_parametrized(conv, "weight"):
                raise ValueError("the generator has no weight norm: call add_weight_norm first")
        self.convolutions = convolutions
        shapes = [conv.parametrizations.weight.original1.shape for conv in convolutions]
        self.forms = [WeightForm(*shape, rows=r) for shape, r in zip(shapes, rows, strict=True)]
        self.bases, entries = [], []
        base = packed = start = 0
        for form in self.forms:
            self.bases.append(base)
            size, window = form.inputs * form.kernel, form.taps * form.rows * form.inputs
            for row in range(form.outputs):
                place = row * window + form.shift * form.inputs
                # Each copy is one position later in the window than the one before.
                apart = form.outputs * window + form.inputs
                entries.append((start, size, form.kernel, form.rows, apart, base + place, packed + place, 0))
                start += size
            base += -(-prod(form.stored) // ALIGNMENT) * ALIGNMENT
            packed += prod(form.stored)
        self.total = base
        self.table = torch.tensor(entries, dtype=torch.int32, device=self._parameters()[0].device)  # R 8

    def _parameters(self) -> list[Tensor]:
        """Gains, then values; looked up anew, for they may have moved."""
        found = [conv.parametrizations.weight for conv in self.convolutions]
        return [p.original0 for p in found] + [p.original1 for p in found]

    def __call__(self, dtype: torch.dtype) -> list[Tensor]:
        """The wide weights (rows * O, rows * I, taps, 1), with their graph."""
        parameters = self._parameters()
        if on_kernels(parameters[0]):
            return list(_Weigh.apply(self, dtype, *parameters))
        return [
            form.widen(conv.weight).to(dtype)
            for form, conv in zip(self.forms, self.convolutions, strict=True)
        ]


class _Weigh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights: Weights, dtype: torch.dtype, *parameters: Tensor) -> tuple[Tensor, ...]:
        from speechgpt.vocoder.training_kernels import weigh

        count = len(parameters) // 2
        gains = torch.cat([g.reshape(-1) for g in parameters[:count]])  # R
        values = torch.cat([v.reshape(-1) for v in parameters[count:]])
        ctx.weights = weights
        ctx.save_for_backward(gains, values)
        wide = weigh(values, gains, weights.table, weights.total, dtype)
        return tuple(
            form.view(wide[base : base + prod(form.stored)])
            for base, form in zip(weights.bases, weights.forms, strict=True)
        )

    @staticmethod
    def backward(ctx, *grads: Tensor):
        from speechgpt.vocoder.training_kernels import weigh_gradient

        (gains, values), forms = ctx.saved_tensors, ctx.weights.forms
        packed = torch.cat([g.permute(0, 2, 3, 1).reshape(-1) for g in grads])
        grad_values, grad_gains = weigh_gradient(values, gains, ctx.weights.table, packed)
        gains_of = grad_gains.split([form.outputs for form in forms])
        values_of = grad_values.split([form.outputs * form.inputs * form.kernel for form in forms])
        return (
            None,
            None,
            *(g.view(-1, 1, 1) for g in gains_of),
            *(v.view(f.outputs, f.inputs, f.kernel) for v, f in zip(values_of, forms, strict=True)),
        )


def rows_in(conv: nn.Module) -> int:
    """Neighbours of a row in a residual block's convolution."""
    return rows_of(conv.parametrizations.weight.original1.shape[0])
