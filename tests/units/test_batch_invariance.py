"""An utterance gets the same units alone, in a padded batch and at any place of it, at true widths.

Features: within 1e-5 of the layer's largest absolute value. Units: equal wherever the difference of the
features, and the rounding of the distances, cannot carry a frame over the plane between two centroids.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import speechgpt
from speechgpt.data.audio import read_audio
from speechgpt.units.codebook import Codebook, Provenance
from speechgpt.units.encoder import Encoder
from speechgpt.units.unit_encoder import UnitEncoder

MINI = Path(speechgpt.__file__).parent / "models" / "mini"
LENGTHS = (400, 719, 720, 5_000, 16_000, 23_457)  # samples
BASE = {"num_hidden_layers": 2}  # HuBERT base but for its depth: group norm, 768 wide
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
}


def speech(samples: int, seed: int) -> np.ndarray:
    """(T,) float32: voiced syllables of changing pitch between breaths of noise, at a level of its own."""
    rng = np.random.default_rng(seed)
    place = np.arange(samples) / 16_000
    pitch = 90 + 100 * rng.random() + 25 * np.sin(2 * np.pi * (0.5 + rng.random()) * place)
    phase = 2 * np.pi * np.cumsum(pitch) / 16_000
    formants = 400 + 300 * rng.random(3) + 900 * np.arange(3) + 250 * np.sin(5 * place[:, None])  # T 3
    voice = sum(
        np.exp(-(((k * pitch[:, None] - formants) / 180) ** 2)).sum(1) * np.sin(k * phase)
        for k in range(1, 25)
    )
    syllable = np.clip(np.sin(2 * np.pi * (3 + rng.random()) * place + rng.random()), 0, None)
    sound = syllable * voice + 0.05 * rng.standard_normal(samples)
    return (10 ** rng.uniform(-2, -0.5) * sound).astype(np.float32)


def margins(features: torch.Tensor, book: Codebook) -> torch.Tensor:
    """How far each frame (N, D) is from the nearest plane between its centroid and another: (N,) float64.

    A shift of the features shorter than this cannot change the unit. Taken off is what float32 can err by in
    two scores, at most D roundings of the sum of |x_i c_i| each, over the distance between the two centroids.
    """
    rows, centroids = features.double(), torch.unique(book.centroids.double(), dim=0)
    square = torch.cdist(rows, centroids, compute_mode="donot_use_mm_for_euclid_dist").square()  # N K
    best = square.argmin(1)
    apart = torch.cdist(centroids, centroids)[best]  # N K
    sums = rows.abs() @ centroids.abs().t()  # N K
    rounding = rows.shape[1] * 2**-24 * (sums + sums.gather(1, best[:, None]))
    distance = ((square - square.gather(1, best[:, None])) / 2 - rounding) / apart
    distance[torch.arange(len(rows)), best] = float("inf")
    return distance.min(1).values


def random_units(architecture: dict, normalize: bool) -> UnitEncoder:
    """True shapes, random weights, and as centroids 200 of the encoder's own frames."""
    encoder = Encoder.create(architecture, normalize, 0).eval()
    layer = encoder.num_layers
    features = torch.cat(encoder.features([speech(40_000, seed) for seed in (90, 91)], layer))
    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:200]
    provenance = Provenance(encoder.fingerprint, layer, encoder.sample_rate, encoder.hop, normalize)
    return UnitEncoder(encoder, Codebook(features[chosen], provenance))


def compare(units: UnitEncoder, waveforms: list[np.ndarray], rolls: int) -> tuple[float, int, int, int]:
    """(largest relative error of features, frames, frames whose margin is too small, units that differ)."""
    alone = [units.encoder.features([w], units.layer)[0] for w in waveforms]
    top = max(float(f.abs().max()) for f in alone)
    worst, frames, close, differ = 0.0, 0, 0, 0
    for roll in np.linspace(0, len(waveforms), rolls, endpoint=False).astype(int):
        order = np.roll(np.arange(len(waveforms)), roll)
        together = units.encoder.features([waveforms[i] for i in order], units.layer)
        for index, batched in zip(order, together, strict=True):
            worst = max(worst, float((batched - alone[index]).abs().max()) / top)
            moved = (batched.double() - alone[index].double()).norm(dim=1)  # N
            safe = margins(alone[index], units.codebook) > moved
            first, second = units.assign([alone[index]])[0], units.assign([batched])[0]
            assert np.array_equal(first[safe.numpy()], second[safe.numpy()])
            frames, close = frames + len(safe), close + int((~safe).sum())
            differ += int((first != second).sum())
    return worst, frames, close, differ


def padded(units: UnitEncoder) -> UnitEncoder:
    """Encodes in padded batches under masks, as training does and a GPU in float32."""
    units.encoder.plan_for = lambda *_: None
    return units


@pytest.mark.parametrize("way", ["packed", "padded"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("architecture", [BASE, LARGE], ids=["base", "large"])
def test_random_encoders_of_true_sizes(architecture, normalize, way):
    units = random_units(architecture, normalize)
    units = padded(units) if way == "padded" else units
    waveforms = [speech(samples, samples) for samples in LENGTHS[:5]]
    worst, frames, close, differ = compare(units, waveforms, rolls=2)
    assert worst < 1e-5
    assert frames > 120 and close < 0.05 * frames and differ <= close


@pytest.mark.parametrize("way", ["packed", "padded"])
@pytest.mark.parametrize("normalize", [True, False])
def test_mini(normalize, way):
    units = UnitEncoder.load(MINI / "encoder", MINI / "codebook.safetensors", device="cpu")
    units = padded(units) if way == "padded" else units
    units.encoder.normalize = normalize
    question = read_audio(MINI / "question.wav")
    waveforms = [question, *(question[5000 : 5000 + n] for n in LENGTHS), *(speech(n, n) for n in LENGTHS)]
    worst, frames, close, differ = compare(units, waveforms, rolls=2)
    assert worst < 1e-5
    assert frames > 800 and close < 0.05 * frames and differ <= close


def test_a_batch_that_ignores_its_padding_would_be_noticed():
    """The comparison itself can fail: with the group norm's plain statistics most features move."""
    units = padded(random_units(BASE | {"num_hidden_layers": 1}, False))
    plain = units.encoder._first_group_norm
    units.encoder._first_group_norm = lambda layer, hidden, lengths, given: plain(layer, hidden, None, given)
    short, long = speech(5_000, 1), speech(40_000, 2)
    (alone,), together = units.encoder.features([short], 1), units.encoder.features([short, long], 1)[0]
    assert (alone - together).abs().max() > 1e-3 * alone.abs().max()
