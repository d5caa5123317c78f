"""The margin: it covers every unit that the error can move, and not much more."""

import pytest
import torch

from speechgpt.units.margins import compare_units, decided_frames

PAIR = torch.tensor([[0.0, 0.0], [2.0, 0.0]])  # the edge runs through x = 1


@pytest.mark.parametrize("distance, error, decided", [(0.5, 0.4, True), (0.5, 0.6, False), (0.01, 0.0, True)])
def test_a_frame_near_an_edge(distance, error, decided):
    x = torch.tensor([[1 - distance, 3.0]])
    y = x + torch.tensor([[error, 0.0]])
    assert decided_frames(x, y, PAIR).tolist() == [decided]


def test_rounding_of_the_distances_counts():
    far = torch.tensor([[1 - 1e-5, 3000.0]])  # |x|^2 is 9e6: in float32 the two distances are equal
    assert not decided_frames(far, far, PAIR).item()


def test_no_error_within_the_measured_one_moves_a_decided_unit():
    generator = torch.Generator().manual_seed(0)
    centroids = torch.randn(50, 8, generator=generator)
    x = torch.randn(400, 8, generator=generator)
    unit = torch.cdist(x, centroids).argmin(-1)
    # The worst direction: straight to the runner-up.
    second = torch.cdist(x, centroids).topk(2, largest=False).indices[:, 1]
    towards = torch.nn.functional.normalize(centroids[second] - centroids[unit], dim=-1)
    for size in (0.01, 0.1, 0.3):
        y = x + size * towards
        moved = torch.cdist(y, centroids).argmin(-1)
        decided = decided_frames(x, y, centroids)
        assert (moved == unit)[decided].all()
        # Straight to the runner-up the bound is met with equality: what it leaves open has moved.
        assert (moved == unit)[~decided].float().mean() < 0.35
        found = compare_units(x, y, centroids, unit, moved)
        assert found.over == 0 and found.within == (moved != unit).sum()


def test_a_different_unit_of_a_decided_frame_is_over():
    x = torch.tensor([[0.1, 0.0], [0.2, 0.0]])
    found = compare_units(x, x, PAIR, torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert (found.frames, found.decided, found.within, found.over) == (2, 2, 0, 1)
    assert (found + found).over == 2


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(2, 2\) against \(1, 2\)"):
        decided_frames(PAIR, PAIR[:1], PAIR)
