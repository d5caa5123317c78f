"""Choosing tokens: the same filters as transformers', and draws that fall as often as their shares say."""

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from speechgpt.decoding import GREEDY, Decoding, chooser, warped


@pytest.mark.parametrize(
    "temperature, top_k, top_p", [(0.8, 60, 0.8), (1.3, 0, 0.5), (0.7, 5, 1.0), (1.0, 900, 1e-6)]
)
def test_filters_are_those_of_transformers(temperature, top_k, top_p):
    scores = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)) * 3
    scores[:, 200:] = float("-inf")  # forbidden by the grammar
    wanted = TemperatureLogitsWarper(temperature)(None, scores)
    wanted = TopKLogitsWarper(top_k)(None, wanted) if top_k else wanted
    wanted = TopPLogitsWarper(top_p)(None, wanted) if top_p < 1 else wanted
    found = warped(scores, Decoding(sample=True, temperature=temperature, top_k=top_k, top_p=top_p))
    assert torch.equal(found.isfinite(), wanted.isfinite())
    assert torch.allclose(found, wanted)


def test_draws_fall_as_their_shares_say():
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    choose = chooser(Decoding(sample=True, seed=7), torch.device("cpu"))
    drawn = choose(shares.log().expand(40_000, -1))
    found = torch.bincount(drawn, minlength=5) / len(drawn)
    assert (found - shares).abs().max() < 0.01 and found[4] == 0
    again = chooser(Decoding(sample=True, seed=7), torch.device("cpu"))(shares.log().expand(40_000, -1))
    other = chooser(Decoding(sample=True, seed=8), torch.device("cpu"))(shares.log().expand(40_000, -1))
    assert torch.equal(drawn, again) and not torch.equal(drawn, other)


def test_greedy_takes_the_likeliest():
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(chooser(GREEDY, torch.device("cpu"))(scores), scores.argmax(-1))
