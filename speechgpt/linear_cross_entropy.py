"""The head and its cross entropy in one: the logits (M, V) exist for a chunk of places at a time only.

At V = 33,006 the logits of 16,384 places in float32, with their gradient, would take 4.3 GB and several
passes over them; a chunk of 2,048 takes 270 MB. The gradients are computed with the loss, so that no chunk is
computed twice.
"""

import torch
import torch.nn.functional as F

from speechgpt.batches import IGNORED

CHUNK = 2048  # places
ALIGNED = 64  # rows: with 33,006 in a table, the tensor cores' fast products want it filled up to 33,024


def softmax_errors(
    logits: torch.Tensor, targets: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits (M, W), of which the first `size` count, and targets (M,) int64 to the losses' sum, float32, and
    d sum / d logits (M, W)."""
    columns = torch.arange(logits.shape[1], device=logits.device)  # W
    scores = torch.where(columns < size, logits.float(), float("-inf"))  # M W
    counted = targets != IGNORED  # M
    chosen = torch.where(counted, targets, 0)[:, None]  # M 1
    total = scores.logsumexp(dim=1, keepdim=True)  # M 1
    losses = (total - scores.gather(1, chosen))[:, 0]  # M
    errors = ((scores - total).exp() - (columns == chosen).float()) * counted[:, None]  # M W
    return (losses * counted).sum(), errors.to(logits.dtype)


compiled_softmax_errors = torch.compile(softmax_errors)  # compiles at its first call


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, compiled: bool):
        errors_of = compiled_softmax_errors if compiled else softmax_errors
        learns_hidden, learns_weight = ctx.needs_input_grad[:2]
        size = len(weight)
        weight = F.pad(weight, (0, 0, 0, -size % ALIGNED))  # W D
        loss = torch.zeros((), device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if learns_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if learns_weight else None
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            chunk_loss, errors = errors_of(hidden[part] @ weight.T, targets[part], size)
            loss += chunk_loss
            if learns_hidden:
                torch.mm(errors, weight, out=hidden_grad[part])
            if learns_weight:
                weight_grad += errors.T @ hidden[part]
        if learns_weight:
            weight_grad = weight_grad[:size]
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss

    @staticmethod
    def backward(ctx, scale):
        found = [
            None if grad is None else (grad * scale).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *found, None, None


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, compiled: bool = False
) -> torch.Tensor:
    """Sum, float32, of the cross entropies of `hidden` (M, D) @ `weight` (V, D) transposed against `targets`
    (M,) int64, without those that are IGNORED. Matrix products are in `hidden`'s dtype, or in autocast's."""
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    return _LinearCrossEntropy.apply(hidden.to(dtype), weight.to(dtype), targets, compiled)
