"""How a LLaMA's matrices lie in memory: the pairs that are rotated side by side, and along what is read."""

import torch

ALIGNED = 16  # outputs of a matrix on a CPU come in multiples of these


def paired(weight: torch.Tensor, width: int, back: bool = False) -> torch.Tensor:
    """Rows (heads * width, D) of each head reordered from halves to pairs, or `back`."""
    shape = (-1, width // 2, 2, weight.shape[1]) if back else (-1, 2, width // 2, weight.shape[1])
    return weight.reshape(shape).transpose(1, 2).reshape(weight.shape)


def laid_out(matrix: torch.Tensor) -> torch.Tensor:
    """(out, in) -> (in, out): contiguous along what is read, on a GPU the inputs, on a CPU the outputs.

    There a row's end is filled up to a multiple of ALIGNED, so that `split` may cut it in equal parts.
    """
    if matrix.device.type != "cpu":
        return matrix.contiguous().t()
    outputs, inputs = matrix.shape
    found = matrix.new_zeros(inputs, -(-outputs // ALIGNED) * ALIGNED)[:, :outputs]
    return found.copy_(matrix.t())


def split(matrix: torch.Tensor, parts: int) -> torch.Tensor:
    """A CPU's (in, out) as (parts, in, out / parts), the fill of a row's end with it: a view."""
    inputs, row = matrix.shape[0], matrix.stride(0)
    return matrix.as_strided((parts, inputs, row // parts), (row // parts, row, 1))
