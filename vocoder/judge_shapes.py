"""How a convolution of a discriminator is computed: which samples stand in a row, which outputs it makes.

A grouped or strided convolution of few channels is slow on a GPU. But `block` outputs that stand beside each
other see one window of neighbouring samples; taken as the channels of a row, they make of it a convolution of
stride 1 over rows of stride * block samples, whose weight holds the kernel `block` times, each shifted by a
stride, zeros around it. More products, of which some are with zeros, but wide ones. The sums are the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from speechgpt.units.triton_works import probe_of, triton_runs

SLOPE = 0.1  # of the leaky ReLUs
TILE_OUTPUTS = 128  # outputs of a row and group: one tile of a product
FEW_GROUPS = 4  # up to so many groups twice as many
MOST_OUTPUTS = 8  # of a row
FIRST_OUTPUTS = {3: 8, 1: 16}  # by stride, of a first layer: two rows then hold a window
PROBE = probe_of("speechgpt.vocoder.judge_kernels")
WITHOUT_KERNELS = "PyTorch's own passes stand between the discriminators' convolutions"


def on_kernels(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether what is computed of `tensor` in `dtype` is the kernels': half precision, where Triton runs.

    First asked in a step that runs eagerly: trying it compiles, which no CUDA graph captures.
    """
    half = dtype in (torch.bfloat16, torch.float16)
    return half and tensor.is_cuda and triton_runs(PROBE, tensor.device, WITHOUT_KERNELS)


@dataclass(frozen=True)
class ConvForm:
    """One convolution: channels a group, and how it is computed."""

    inputs: int  # channels a group
    outputs: int  # channels a group
    groups: int
    kernel: int
    stride: int
    block: int = 1  # outputs of a row
    direct: bool = False  # rows of one sample, and the stride left to the convolution

    @property
    def half(self) -> int:
        """Samples of padding on either side."""
        return self.kernel // 2

    @property
    def channels_out(self) -> int:
        return self.groups * self.outputs

    @property
    def samples(self) -> int:
        """Of a row."""
        return 1 if self.direct else self.stride * self.block

    @property
    def step(self) -> int:
        """Stride over rows."""
        return self.stride if self.direct else 1

    @property
    def taps(self) -> int:
        """Rows that an output row sees."""
        return -(-((self.block - 1) * self.stride + self.kernel) // self.samples)

    @property
    def window(self) -> int:
        """Samples that an output row sees."""
        return self.taps * self.samples

    def length(self, samples: int) -> int:
        """Outputs of so many samples."""
        return (samples + 2 * self.half - self.kernel) // self.stride + 1

    def rows_in(self, samples: int) -> int:
        """Rows that hold so many samples and the padding before them; what else they hold is zeros."""
        if self.direct:
            return samples + 2 * self.half
        rows = -(-self.length(samples) // self.block) + self.taps - 1
        return max(rows, -(-(self.half + samples) // self.samples))


def form_of(inputs: int, outputs: int, groups: int, kernel: int, stride: int) -> ConvForm:
    """The form that was fastest where it was measured, for channels in all.

    On an H100 in bfloat16: strides of 3 as two taps over rows of 3 samples up to 128 channels, above
    directly; groups by rows that make 128 outputs of each.
    """
    shape = (inputs // groups, outputs // groups, groups, kernel, stride)
    if inputs == 1:
        return ConvForm(*shape, block=FIRST_OUTPUTS.get(stride, 1))
    if groups == 1:
        return ConvForm(*shape, direct=stride == 1 or inputs > TILE_OUTPUTS)
    wanted = TILE_OUTPUTS * (2 if groups <= FEW_GROUPS else 1)
    return ConvForm(*shape, block=max(1, min(MOST_OUTPUTS, wanted * groups // outputs)))
