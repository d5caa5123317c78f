"""The order in which the positions of a row are stored, so that any convolution is a dense, wide one.

A convolution of few channels fills no tensor core, and a dilated one has slow gradients in cuDNN. `rows`
neighbours (of one residue of the dilation) beside each other are a row of rows * C channels, and residues
beside each other are an image without dilation: its convolution is cuDNN's best case.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

WIDTH = 128  # channels that a row of neighbours comes to


def rows_of(channels: int) -> int:
    """Neighbours that make one row of about `WIDTH` channels."""
    return max(1, WIDTH // channels)


@dataclass(frozen=True)
class Grid:
    """`length` positions of a row stored as (H, dilation, rows), zeros behind the last."""

    length: int
    rows: int = 1
    dilation: int = 1

    @property
    def stored(self) -> int:
        """S: positions with those behind the last."""
        block = self.rows * self.dilation
        return -(-self.length // block) * block

    def image(self, x: Tensor) -> Tensor:
        """x (B, S, C) -> the same numbers as (B, rows * C, H, dilation), channels innermost."""
        batch, stored, channels = x.shape
        height = stored // (self.rows * self.dilation)
        return x.view(batch, height, self.dilation, self.rows * channels).permute(0, 3, 1, 2)

    def stacked(self, image: Tensor, channels: int) -> Tensor:
        """The reverse of `image`: (B, S, C)."""
        return image.permute(0, 2, 3, 1).reshape(len(image), self.stored, channels)

    def lay(self, x: Tensor) -> Tensor:
        """x (B, T, C) in the order of time -> (B, S, C)."""
        batch, length, channels = x.shape
        x = F.pad(x, (0, 0, 0, self.stored - length)).view(batch, -1, self.rows, self.dilation, channels)
        return x.transpose(2, 3).reshape(batch, self.stored, channels)  # B S C

    def read(self, x: Tensor) -> Tensor:
        """The reverse of `lay`: (B, T, C)."""
        batch, stored, channels = x.shape
        x = x.view(batch, -1, self.dilation, self.rows, channels).transpose(2, 3)
        return x.reshape(batch, stored, channels)[:, : self.length]  # B T C
