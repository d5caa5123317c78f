"""Rows of unlike lengths in one tensor: which of them go together, so that padding stays bounded."""

from collections.abc import Sequence

# Padded audio of one float32 forward. On a GPU 160 s are 1 GB for each of the few tensors of the first
# convolution's size that are alive at a time.
PADDED_SECONDS = {"cpu": 60.0, "cuda": 160.0}


def length_batches(seconds: Sequence[float], budget: float) -> list[list[int]]:
    """Indices in batches of like lengths, longest first; each batch, padded, is `budget` seconds at most."""
    batches: list[list[int]] = []
    longest = 0.0
    for index in sorted(range(len(seconds)), key=lambda i: (-seconds[i], i)):
        if not batches or longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = seconds[index]
        batches[-1].append(index)
    return batches
