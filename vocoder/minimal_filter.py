"""Steps of residual blocks on a CPU with half the multiplications: minimal filtering (Toom-Cook, Winograd).

Four outputs of a convolution, `dilation` apart, and four of its taps multiply as polynomials do: seven
products, one at each point, stand for sixteen. A kernel of k taps is ceil(k / 4) such groups, summed inside
plain convolutions over every fourth position: 7 taps take 13 products for 28, 11 taps 20 for 44. On top come
additions alone, which many channels outweigh. The result is the same but for rounding: it errs three to four
times as much as the plain sum.
"""

from collections.abc import Iterator
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 4  # outputs computed together, and taps of a group
POINTS = (0, 1, -1, 2, -2, 1 / 2)  # where the polynomials are multiplied; infinity is the last, seventh one
BIASED = 1  # the index of point 1: its product enters every output once
# Where it pays, measured with two threads of an AMD processor with AVX-512. Products saved an output sample
# (taps saved times channels) against the additions: 240 lost 5 %, 384 won 15 %, 480 won 25 %. Products saved
# by a whole convolution against 40 calls in place of one: 74 M lost 8 %, 118 M won 12 %, and nothing inside a
# generator, where the filters, twice a kernel's size, come from memory.
LEAST_SAVED_A_SAMPLE = 320
LEAST_SAVED = 150_000_000
TILE = 1_300_000  # outputs of all channels computed at once, at most, so that caches hold what is between

_leaky_relu = torch.ops.aten.leaky_relu.out


class MinimalFilter:
    """A convolution of C to C channels whose padding keeps the length; its kernel is odd and above 4."""

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int):
        """weight (C, C, k), bias (C,): copied, of any floating dtype."""
        _, self.width, kernel = weight.shape
        self.dilation, self.padding = dilation, dilation * (kernel // 2)
        self.step, self.groups = BLOCK * self.dilation, _groups(kernel)
        self.where = ((0, 0), (1, 1), (1, self.dilation), 1)  # padding, stride, dilation, channel groups
        taps = F.pad(weight.detach().cpu().double(), (0, self.groups * BLOCK - kernel))  # O I g*4
        values = torch.einsum("pr,oigr->poig", _at_points(), taps.unflatten(2, (-1, BLOCK)))
        filters = [*values[:-1], values[-1, ..., :-1]]  # an odd kernel's last group has no fourth tap
        self.filters = [_packed(f.float(), self.dilation) for f in filters]
        self.bias = bias.detach().float().clone()

    def blocks(self, length: int) -> int:
        """Of `step` outputs each, that cover `length` of them."""
        return -(-length // self.step)

    def rows(self, length: int) -> int:
        """Rows that the input of `length` rows needs with the zeros around it."""
        return (self.blocks(length) + self.groups) * self.step

    def __call__(self, rows: Tensor) -> Iterator[tuple[int, list[Tensor]]]:
        """`rows` (R, C): `padding` rows of zeros, the input, zeros.

        Yields the outputs in blocks of `step`, some blocks at a time: where they start, and the first to the
        last quarter of each, every one (blocks, dilation * C).
        """
        blocks = len(rows) // self.step - self.groups
        some = ceil(blocks / ceil(blocks * self.step * self.width / TILE))
        spare = torch.empty((some + self.groups) * self.step, self.width)
        for start in range(0, blocks, some):
            tile = rows[start * self.step : (min(start + some, blocks) + self.groups) * self.step]
            yield start * self.step, self._filter(tile, spare[: len(tile)])

    def _filter(self, rows: Tensor, spare: Tensor) -> list[Tensor]:
        """The quarters of all outputs that rows (R, C) suffice for; `spare` (R, C) is overwritten."""
        shape = (-1, BLOCK, self.dilation * self.width)
        x, blocks = _phases(rows.view(shape)), len(rows) // self.step - self.groups
        a, b, c, d = torch.empty(4, *x[0].shape).unbind()
        torch.sub(x[5], x[3], out=b).sub_(torch.sub(x[3], x[1], out=a), alpha=4)
        half = self._product(b, 5)
        # The rest has (x - 1/2) as a factor: applied once, to all rows.
        torch.sub(rows[self.dilation :], rows[: -self.dilation], alpha=1 / 2, out=spare[: -self.dilation])
        x = _phases(spare.view(shape))
        even, odd = torch.sub(x[4], x[2], alpha=4, out=a), torch.sub(x[3], x[1], alpha=4, out=b)
        one = self._product(torch.add(even, odd, out=c), 1)
        minus_one = self._product(torch.sub(even, odd, out=d), 2)
        even, odd = torch.sub(x[4], x[2], out=a), torch.sub(x[3], x[1], out=b)
        two = self._product(torch.add(even, odd, alpha=2, out=c), 3)
        minus_two = self._product(torch.sub(even, odd, alpha=2, out=d), 4)
        odd1 = torch.sub(one, minus_one, out=c[:blocks])
        odd2 = torch.sub(two, minus_two, out=d[:blocks])
        even1, even2 = one.add_(minus_one), two.add_(minus_two)
        y0 = torch.add(even1, even2, out=minus_two).add_(half)
        y2 = even1.add_(even2, alpha=4).add_(half, alpha=1 / 4)
        y3 = torch.add(odd1, odd2, alpha=8, out=minus_one).add_(half, alpha=1 / 8)
        y1 = odd1.add_(odd2, alpha=2).add_(half, alpha=1 / 2)
        self._accumulate(torch.sub(x[5], x[3], out=d).sub_(odd, alpha=4), 6, y3)
        self._accumulate(torch.add(even, torch.sub(x[0], x[2], out=b), alpha=4, out=d), 0, y0)
        return [y0, y1, y2, y3]

    def _image(self, rows: Tensor) -> Tensor:
        """(blocks, dilation * C) -> (1, C, 1, blocks * dilation)."""
        return rows.view(1, 1, -1, self.width).permute(0, 3, 1, 2)

    def _product(self, values: Tensor, point: int) -> Tensor:
        """The data's values at a point (blocks + groups - 1, dilation * C) -> (blocks, dilation * C)."""
        bias = self.bias if point == BIASED else None
        found = torch.ops.mkldnn._convolution_pointwise(
            self._image(values), self.filters[point], bias, *self.where, "none", [], ""
        )
        return found.permute(0, 2, 3, 1).view(-1, values.shape[1])

    def _accumulate(self, values: Tensor, point: int, total: Tensor) -> None:
        """Adds `_product` to `total` (blocks, dilation * C)."""
        values = values[: len(total) + self.filters[point].shape[3] - 1]
        x, total = self._image(values), self._image(total)
        torch.ops.mkldnn._convolution_pointwise_.binary(
            total, x, self.filters[point], None, *self.where, "add", 1, None, [], None
        )


class MinimalPair:
    """x + second(activated(first(activated(x)))): a step of a residual block."""

    def __init__(self, first: MinimalFilter, second: MinimalFilter, slope: float):
        """The second is not dilated; `slope`: of the leaky ReLUs."""
        self.first, self.second, self.slope = first, second, slope

    def __call__(self, x: Tensor) -> Tensor:
        """x (1, C, 1, T) float32, channel-innermost -> (1, C, 1, T), likewise."""
        x = x.permute(0, 2, 3, 1).flatten(0, 2)  # T C
        first, second, length = self.first, self.second, len(x)
        before = torch.empty(first.rows(length), x.shape[1])
        _leaky_relu(x, self.slope, out=_zeros_around(before, first, length))
        covered = second.padding + first.blocks(length) * first.step  # whole blocks may end beyond T
        between = torch.empty(max(second.rows(length), covered), x.shape[1])
        for start, quarters in first(before):
            place = between[second.padding + start :][: len(quarters[0]) * first.step]
            place = place.view(-1, BLOCK, quarters[0].shape[1])
            for j, quarter in enumerate(quarters):
                _leaky_relu(quarter, self.slope, out=place[:, j])
        _zeros_around(between, second, length)
        sums = torch.empty_like(x)
        for start, quarters in second(between[: second.rows(length)]):
            for j, quarter in enumerate(quarters):  # of one row each: the second convolution is not dilated
                place = sums[start + j :: BLOCK][: len(quarter)]
                torch.add(x[start + j :: BLOCK][: len(quarter)], quarter[: len(place)], out=place)
        return sums[None, None].permute(0, 3, 1, 2)


def _zeros_around(rows: Tensor, conv: MinimalFilter, length: int) -> Tensor:
    """Zeroes what surrounds the convolution's input; returns the place of the input (length, C)."""
    stop = conv.padding + length
    rows[: conv.padding].zero_()
    rows[stop : conv.rows(length)].zero_()
    return rows[conv.padding : stop]


def _phases(blocks: Tensor) -> list[Tensor]:
    """(blocks, 4, W) -> each row's first to fourth, then the next row's: eight of (blocks - 1, W)."""
    return [*blocks[:-1].unbind(1), *blocks[1:].unbind(1)]


def _at_points() -> Tensor:
    """(7, 4) float64: four taps as a polynomial's coefficients to its values at the points.

    Divided by the product of the point's differences to the others: interpolation needs that somewhere, and
    here the data's own factors stay small integers and all of the rounding is in float64.
    """
    points = torch.tensor(POINTS, dtype=torch.float64)
    differences = (points[:, None] - points).fill_diagonal_(1).prod(1, keepdim=True)
    values = points[:, None] ** torch.arange(BLOCK) / differences
    return torch.cat([values, torch.eye(BLOCK, dtype=torch.float64)[-1:]])


def _packed(weight: Tensor, dilation: int) -> Tensor:
    """(O, I, g) as (O, I, 1, g) in the order that oneDNN wants."""
    weight = weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    some = [1, weight.shape[1], 1, 1_000]  # the order hardly depends on the input's length
    return torch.ops.mkldnn._reorder_convolution_weight(weight, (0, 0), (1, 1), (1, dilation), 1, some)


def _groups(kernel: int) -> int:
    return -(-kernel // BLOCK)


def _saved_taps(kernel: int) -> float:
    """Products saved an output of a channel and an input channel."""
    return kernel - ((len(POINTS) + 1) * _groups(kernel) - 1) / BLOCK


def pays(width: int, kernel: int) -> bool:
    """Whether a convolution of `width` channels gains where its input is long."""
    return kernel > BLOCK and _saved_taps(kernel) * width >= LEAST_SAVED_A_SAMPLE


def least_length(width: int, kernel: int) -> int:
    """Rows of the input from which on it gains: a fixed rule, so that the same input goes the same way."""
    return ceil(LEAST_SAVED / (_saved_taps(kernel) * width**2))
