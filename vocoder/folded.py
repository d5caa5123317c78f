"""The generator made for speaking: plain weights laid out channel-innermost, in place, without gradients.

The same sums as `UnitVocoder.generate`, in another order, and on a CPU with fewer multiplications where that
pays (`minimal_filter`). Channel-innermost convolutions come near the matrix rate of a CPU where those over
(B, C, T) do not, and a GPU's tensor cores want that layout. (B, C, 1, T) in `channels_last` is (B, T, C) in
memory; one-dimensional convolutions know no such layout.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechgpt.vocoder.generator import LAST_SLOPE, SLOPE, Lengths, UnitVocoder
from speechgpt.vocoder.minimal_filter import MinimalFilter, MinimalPair, least_length, pays

TILE_SAMPLES = (
    64_000  # of the waveform: what the late stages compute at once on a CPU, so that caches hold it
)
FIRST_TILED = 128  # channels that enter a late stage, at most


class Convolution:
    """A convolution over (B, C, 1, T) with its weight packed once."""

    def __init__(self, conv: nn.Conv1d, device: torch.device, dtype: torch.dtype):
        self.weight, self.bias = _copied(conv, device, dtype)  # O I 1 k, O
        self.padding, self.dilation = (0, conv.padding[0]), (1, conv.dilation[0])
        self.packed = device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available()
        if self.packed:
            some = [1, self.weight.shape[1], 1, 1_000]  # the layout hardly depends on the input's length
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, self.padding, (1, 1), self.dilation, 1, some
            )

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, I, 1, T) -> (B, O, 1, T)."""
        if not self.packed:
            return F.conv2d(x, self.weight, self.bias, 1, self.padding, self.dilation)
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, self.padding, (1, 1), self.dilation, 1, "none", [], ""
        )

    def minimal(self) -> MinimalFilter:
        """The same convolution with fewer multiplications, of this one's own copy of the weights."""
        weight = self.weight.to_dense() if self.packed else self.weight
        return MinimalFilter(weight.squeeze(2), self.bias, self.dilation[1])


class Pair:
    """Two convolutions with the sum around them: a step of a residual block."""

    def __init__(self, first: nn.Conv1d, second: nn.Conv1d, device: torch.device, dtype: torch.dtype):
        self.first, self.second = Convolution(first, device, dtype), Convolution(second, device, dtype)
        width, kernel = first.in_channels, first.kernel_size[0]
        self.least = least_length(width, kernel) if self.first.packed and pays(width, kernel) else None
        # Made at first use: at the published size they take 0.11 s and 67 MB, and short inputs need none.
        self.minimal: MinimalPair | None = None

    def __call__(self, x: Tensor, clip: Callable[[Tensor], Tensor] | None) -> Tensor:
        """x (B, C, 1, T), zero where `clip` zeroes -> (B, C, 1, T), likewise."""
        if self.least is not None and clip is None and len(x) == 1 and x.shape[3] >= self.least:
            if self.minimal is None:
                self.minimal = MinimalPair(self.first.minimal(), self.second.minimal(), SLOPE)
            return self.minimal(x)
        y = self.first(F.leaky_relu(x, SLOPE))
        y = self.second(F.leaky_relu_(y if clip is None else clip(y), SLOPE)).add_(x)
        return y if clip is None else clip(y)


class Upsampling:
    """A transposed convolution over (B, C, 1, T)."""

    def __init__(self, conv: nn.ConvTranspose1d, device: torch.device, dtype: torch.dtype):
        self.weight, self.bias = _copied(conv, device, dtype)  # I O 1 k, O
        self.rate, self.padding = conv.stride[0], conv.padding[0]

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, I, 1, T) -> (B, O, 1, T * rate)."""
        return F.conv_transpose2d(x, self.weight, self.bias, (1, self.rate), (0, self.padding))


def _copied(conv: nn.Module, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight with a height of 1, channel-innermost, and bias: copies that share nothing with the module's."""
    weight = conv.weight.detach().to(device, dtype).unsqueeze(2)
    return weight.clone(memory_format=torch.channels_last), conv.bias.detach().to(device, dtype, copy=True)


class FoldedGenerator:
    """`UnitVocoder`'s convolutions as they are now, copied: later changes of the vocoder do not reach it."""

    def __init__(self, model: UnitVocoder, dtype: torch.dtype = torch.float32):
        self.config, self.device, self.dtype = model.config, model.device, dtype

        def conv(module: nn.Conv1d) -> Convolution:
            return Convolution(module, model.device, dtype)

        self.pre = conv(model.conv_pre)
        self.ups = [Upsampling(module, model.device, dtype) for module in model.ups]
        self.blocks = [
            [
                Pair(first, second, model.device, dtype)
                for first, second in zip(block.convs1, block.convs2, strict=True)
            ]
            for block in model.resblocks
        ]
        # Samples in half precision would carry noise 50 dB down: the last convolution is never of it.
        self.post = Convolution(model.conv_post, model.device, torch.float32)
        narrow = [i for i, up in enumerate(model.ups) if up.in_channels <= FIRST_TILED]
        self.tiled = narrow[0] if narrow and self.device.type == "cpu" else len(self.ups)

    def __call__(self, x: Tensor, lengths: Lengths | None = None) -> Tensor:
        """x (B, D, N) embedded frames -> (B, N * hop) float32, zero beyond a row's length."""
        x = x.to(self.dtype).unsqueeze(2).contiguous(memory_format=torch.channels_last)  # B D 1 N
        clip = None if lengths is None else _clip(lengths)
        x, rate = self.pre(x), 1  # B C 1 N
        x = x if clip is None else clip(x, rate)
        tiled = self.tiled if lengths is None else len(self.ups)
        for stage in range(tiled):
            rate *= self.ups[stage].rate
            x = self._stage(x, stage, clip and partial(clip, rate=rate))  # B C 1 N*rate
        sound = self._tiles(x, tiled) if tiled < len(self.ups) else self._last(x)  # B N*hop
        return sound if clip is None else clip(sound, rate)

    def _stage(self, x: Tensor, stage: int, clip: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Upsampling `stage` and its residual blocks: (B, C, 1, T) -> (B, C / 2, 1, T times its rate)."""
        x = self.ups[stage](F.leaky_relu(x, SLOPE))  # x may be a view that others read
        x = x if clip is None else clip(x)
        count = len(self.config.resblock_kernels)
        total = None
        for block in self.blocks[stage * count : (stage + 1) * count]:
            h = x
            for pair in block:
                h = pair(h, clip)
            total = h if total is None else total.add_(h)
        return total.div_(count)

    def _last(self, x: Tensor) -> Tensor:
        """x (B, C, 1, T) -> the samples (B, T) float32."""
        return self.post(F.leaky_relu_(x.float(), LAST_SLOPE)).tanh_()[:, 0, 0]

    def _tiles(self, x: Tensor, first: int) -> Tensor:
        """Stages from `first` on, one stretch of time after another: (B, C, 1, T) -> (B, T * their rates)."""
        left, right = self.config.stage_reach(first)
        rate = 1
        for up in self.ups[first:]:
            rate *= up.rate
        length, step = x.shape[-1], max(1, TILE_SAMPLES // rate)
        sound = x.new_empty(len(x), length * rate, dtype=torch.float32)  # B T*rate
        for start in range(0, length, step):
            stop, begin = min(start + step, length), max(start - left, 0)
            tile = x[..., begin : stop + right].contiguous(memory_format=torch.channels_last)
            for stage in range(first, len(self.ups)):
                tile = self._stage(tile, stage)
            tile = self._last(tile)
            sound[:, start * rate : stop * rate] = tile[:, (start - begin) * rate : (stop - begin) * rate]
        return sound


def _clip(lengths: Lengths) -> Callable[[Tensor, int], Tensor]:
    """Zeroes (..., T) beyond the rows' lengths, in place."""
    masks: dict[int, Tensor] = {}

    def clip(x: Tensor, rate: int) -> Tensor:
        if rate not in masks:
            position = torch.arange(x.shape[-1], device=x.device)
            masks[rate] = position >= lengths.frames.view(-1, 1, 1, 1) * rate  # B 1 1 T
        return x.masked_fill_(masks[rate].view(len(x), *[1] * (x.dim() - 2), -1), 0)

    return clip
