"""The generator made for speaking: plain weights laid out channel-innermost, in place, without gradients.

The same sums as `UnitVocoder.generate`, in another order. Channel-innermost convolutions come near the matrix
rate of a CPU where those over (B, C, T) do not, and a GPU's tensor cores want that layout. (B, C, 1, T) in
`channels_last` is (B, T, C) in memory; one-dimensional convolutions know no such layout.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechgpt.vocoder.generator import LAST_SLOPE, SLOPE, Lengths, UnitVocoder

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
            [(conv(c1), conv(c2)) for c1, c2 in zip(block.convs1, block.convs2, strict=True)]
            for block in model.resblocks
        ]
        # Samples in half precision would carry noise 50 dB down: the last convolution is never of it.
        self.post = Convolution(model.conv_post, model.device, torch.float32)
        narrow = [i for i, up in enumerate(model.ups) if up.in_channels <= FIRST_TILED]
        self.tiled = narrow[0] if narrow and self.device.type == "cpu" else len(self.ups)

    def __call__(self, x: Tensor, lengths: Lengths | None = None) -> Tensor:
        """x (B, D, N) embedded frames -> (B, N * hop) float32, zero beyond a row's length."""
        x = x.to(self.dtype).unsqueeze(2).contiguous(memory_format=torch.channels_last)  # B D 1 N
        clip = (lambda x, rate: x) if lengths is None else _clip(lengths)
        x, rate = clip(self.pre(x), 1), 1  # B C 1 N
        tiled = self.tiled if lengths is None else len(self.ups)
        for stage in range(tiled):
            rate *= self.ups[stage].rate
            x = self._stage(x, stage, rate, clip)  # B C 1 N*rate
        sound = self._tiles(x, tiled) if tiled < len(self.ups) else self._last(x)  # B N*hop
        return clip(sound, rate) if lengths is not None else sound

    def _stage(self, x: Tensor, stage: int, rate: int, clip: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Upsampling `stage` and its residual blocks: (B, C, 1, T) -> (B, C / 2, 1, T times its rate)."""
        x = clip(self.ups[stage](F.leaky_relu(x, SLOPE)), rate)  # x may be a view that others read
        count = len(self.config.resblock_kernels)
        total = None
        for block in self.blocks[stage * count : (stage + 1) * count]:
            h = x
            for conv1, conv2 in block:
                y = clip(conv1(F.leaky_relu(h, SLOPE)), rate)
                h = clip(conv2(F.leaky_relu_(y, SLOPE)), rate).add_(h)
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
                tile = self._stage(tile, stage, 0, lambda x, _: x)
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
