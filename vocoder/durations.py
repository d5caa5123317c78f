"""How many frames each unit lasts: the published predictor, masked so that padded rows equal rows alone."""

import torch
from torch import Tensor, nn


class DurationPredictor(nn.Module):
    """Two convolutions with layer norm; predicts log(1 + frames) for every unit.

    Module names follow the published checkpoints (`conv1.0`, `ln1`, `conv2.0`, `ln2`, `proj`).
    """

    def __init__(self, input_width: int, width: int = 128, kernel: int = 3, dropout: float = 0.5):
        super().__init__()
        padding = (kernel - 1) // 2
        self.conv1 = nn.Sequential(nn.Conv1d(input_width, width, kernel, padding=padding), nn.ReLU())
        self.ln1 = nn.LayerNorm(width)
        self.conv2 = nn.Sequential(nn.Conv1d(width, width, kernel, padding=padding), nn.ReLU())
        self.ln2 = nn.LayerNorm(width)
        self.proj = nn.Linear(width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, U, D) float, mask (B, U) bool (True where a unit is); returns log(1 + frames) (B, U)."""
        # Padding must look like the convolutions' own zero padding to the last true units.
        keep = None if mask is None else mask.unsqueeze(-1).to(x.dtype)  # B U 1
        x = x if keep is None else x * keep
        x = self.dropout(self.ln1(self.conv1(x.transpose(1, 2)).transpose(1, 2)))  # B U W
        x = x if keep is None else x * keep
        x = self.dropout(self.ln2(self.conv2(x.transpose(1, 2)).transpose(1, 2)))  # B U W
        return self.proj(x).squeeze(-1)  # B U


def frames_from_log(log_durations: Tensor, scale: float = 1.0) -> Tensor:
    """log(1 + frames) x of any shape to whole frames int64: max(1, round((exp(x) - 1) * scale))."""
    return torch.round((torch.exp(log_durations.float()) - 1) * scale).clamp(min=1).long()
