"""The generator made for speaking in half precision on a GPU: one kernel a convolution, over (B, T, C).

The same sums as `UnitVocoder.generate`; what is stored between two convolutions is rounded to half precision,
everything within one is float32.
"""

import torch
from torch import Tensor, nn

from speechgpt.units.devices import on_device
from speechgpt.vocoder.generator import LAST_SLOPE, SLOPE, Lengths, UnitVocoder
from speechgpt.vocoder.triton_kernels import convolution, last_convolution


class Convolution:
    """A convolution's weight as the kernel reads it: (taps * I, O), with the shift of its first tap."""

    def __init__(self, conv: nn.Conv1d, dtype: torch.dtype):
        weight = conv.weight.detach().permute(2, 1, 0)  # k I O
        self.taps, self.left, self.dilation = len(weight), conv.padding[0], conv.dilation[0]
        self.weight = weight.reshape(-1, weight.shape[2]).to(dtype, copy=True).contiguous()
        self.bias = conv.bias.detach().float().clone()

    def __call__(self, x: Tensor, frames: Tensor, rate: int, **around: object) -> Tensor:
        """x (B, T, I) -> (B, T, O); `around` goes to the kernel."""
        return convolution(
            x, self.weight, self.bias, frames, rate, self.taps, self.left, self.dilation, **around
        )


class Upsampling:
    """A transposed convolution as a convolution whose columns are the `rate` samples of a position.

    Sample q * rate + r sees position q + d through tap r + padding - d * rate, where the kernel has that tap.
    """

    def __init__(self, conv: nn.ConvTranspose1d, dtype: torch.dtype):
        weight = conv.weight.detach().float()  # I O k
        (inputs, outputs, kernel), padding = weight.shape, conv.padding[0]
        self.rate, self.outputs = conv.stride[0], outputs
        first, last = -((kernel - 1 - padding) // self.rate), (self.rate - 1 + padding) // self.rate
        self.taps, self.left = last - first + 1, -first
        table = weight.new_zeros(self.taps, inputs, self.rate, outputs)
        for d in range(first, last + 1):
            for r in range(self.rate):
                tap = r + padding - d * self.rate
                if 0 <= tap < kernel:
                    table[d - first, :, r] = weight[:, :, tap]
        self.weight = table.reshape(self.taps * inputs, self.rate * outputs).to(dtype).contiguous()
        self.bias = conv.bias.detach().float().repeat(self.rate)

    def __call__(self, x: Tensor, frames: Tensor, rate: int) -> Tensor:
        """x (B, T, I), whose rows have `rate` positions a frame -> (B, T * self.rate, O), of leaky x."""
        y = convolution(x, self.weight, self.bias, frames, rate, self.taps, self.left, slope=SLOPE)
        return y.view(len(x), -1, self.outputs)  # B T*rate O


class FusedGenerator:
    """`UnitVocoder`'s convolutions as they are now, copied: later changes of the vocoder do not reach it."""

    def __init__(self, model: UnitVocoder, dtype: torch.dtype):
        self.config, self.device, self.dtype = model.config, model.device, dtype
        self.pre = Convolution(model.conv_pre, dtype)
        self.ups = [Upsampling(up, dtype) for up in model.ups]
        self.blocks = [
            [
                (Convolution(c1, dtype), Convolution(c2, dtype))
                for c1, c2 in zip(block.convs1, block.convs2, strict=True)
            ]
            for block in model.resblocks
        ]
        self.last_weight = (
            model.conv_post.weight.detach()[0].t().float().clone(memory_format=torch.contiguous_format)
        )  # k C
        self.last_bias = model.conv_post.bias.detach().float().clone()

    def __call__(self, x: Tensor, lengths: Lengths | None = None) -> Tensor:
        """x (B, D, N) embedded frames -> (B, N * hop) float32, zero beyond a row's length."""
        with on_device(x.device):
            return self._waveforms(x, lengths)

    def _waveforms(self, x: Tensor, lengths: Lengths | None) -> Tensor:
        if lengths is None:
            frames = torch.full((len(x),), x.shape[-1], dtype=torch.int32, device=x.device)  # B
        else:
            frames = lengths.frames.int()
        x = self.pre(x.transpose(1, 2).to(self.dtype).contiguous(), frames, 1)  # B N C
        rate, count = 1, len(self.config.resblock_kernels)
        for stage, up in enumerate(self.ups):
            x = up(x, frames, rate)  # B N*rate C
            rate *= up.rate
            x = self._blocks(self.blocks[stage * count : (stage + 1) * count], x, frames, rate)
        return last_convolution(x, self.last_weight, self.last_bias, frames, rate, LAST_SLOPE)  # B N*hop

    def _blocks(self, blocks: list, x: Tensor, frames: Tensor, rate: int) -> Tensor:
        """The mean of the residual blocks: (B, T, C) -> (B, T, C)."""
        total, inner, stream = None, torch.empty_like(x), torch.empty_like(x)
        for number, block in enumerate(blocks):
            h = x
            for pair, (conv1, conv2) in enumerate(block):
                conv1(h, frames, rate, slope=SLOPE, slope_out=SLOPE, out=inner)
                if pair < len(block) - 1:
                    h = conv2(inner, frames, rate, residual=h, out=stream)
                    continue
                mean = 1 / len(blocks) if number == len(blocks) - 1 else 1.0
                total = conv2(inner, frames, rate, residual=h, total=total, scale=mean, out=total)
        return total
