"""Matrix products of inference on a CPU: float32 by the fastest library that torch has, or int8."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

INT8_MOST = 127.0
# oneDNN's product takes half the time of MKL's on AVX-512 machines that are not Intel's, and does GELU on the
# way; torch uses it for compiled models only.
_ONEDNN = torch.ops.mkldnn._linear_pointwise if torch.backends.mkldnn.is_available() else None


class PackedLinear:
    """(R, D) to (R, D'), one or several linear layers at once, with what follows them."""

    def __init__(
        self,
        layers: nn.Linear | Sequence[nn.Linear],
        quantized: bool = False,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        layers = [layers] if isinstance(layers, nn.Linear) else layers
        weights, biases = ([getattr(m, name).detach() for m in layers] for name in ("weight", "bias"))
        weight = torch.cat(weights) if len(layers) > 1 else weights[0]  # D' D
        self.bias = torch.cat(biases) if len(layers) > 1 else biases[0]  # D'
        self.activation, self.scale = activation, None
        if quantized:
            self.scale = (weight.abs().amax(1) / INT8_MOST).clamp(min=1e-12)  # D'
            weight = (weight / self.scale[:, None]).round().to(torch.int8)
        self.weight = weight.contiguous()

    def __call__(self, rows: Tensor) -> Tensor:
        if self.scale is not None:
            found = self._by_int8(rows)
        elif _ONEDNN is not None and rows.dtype == torch.float32:
            fused = self.activation is functional.gelu
            found = _ONEDNN(rows, self.weight, self.bias, "gelu" if fused else "none", [], "none")
            if fused:
                return found
        else:
            found = functional.linear(rows, self.weight, self.bias)
        return found if self.activation is None else self.activation(found)

    def _by_int8(self, rows: Tensor) -> Tensor:
        """Each row of activations gets a scale of its own, so that a result does not depend on its batch."""
        scale = (rows.abs().amax(1, keepdim=True) / INT8_MOST).clamp(min=1e-12)  # R 1
        quantized = (rows / scale).round_().to(torch.int8)
        found = torch._int_mm(quantized, self.weight.T).float()  # R D'
        return found.mul_(scale).mul_(self.scale).add_(self.bias)


def convolve_rows(rows: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """(M, C) to (M', C'); weight (C', C, kernel). Rows are channels last, as oneDNN's fastest path wants."""
    image = rows.T[None, :, None]  # 1 C 1 M
    weight = weight[:, :, None].contiguous(memory_format=torch.channels_last)
    return functional.conv2d(image, weight, bias, (1, stride))[0, :, 0].T  # M' C'
