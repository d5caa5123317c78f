"""An encoder trained towards a codebook that stays: the same centroids, labels in line with the phones."""

import numpy as np
import pytest
import torch

from speechgpt.units.audio_pool import IGNORED
from speechgpt.units.codebook import Codebook
from speechgpt.units.codebook_fitting import CodebookConfig, fit_codebook
from speechgpt.units.encoder import Encoder
from speechgpt.units.kept_codebook import kept_heads, unit_owners
from speechgpt.units.masked_prediction import CodebookHead
from speechgpt.units.pretrain import pretrain
from speechgpt.units.unit_encoder import UnitEncoder

from .conftest import LAYER
from .test_pretrain import a_config

KEPT = {"kind": "codebook", "unmasked_weight": 1.0}


@pytest.fixture
def teacher(corpus, tmp_path) -> UnitEncoder:
    pretrain(a_config(tmp_path), corpus, tmp_path / "first", "cpu")
    encoder = Encoder.load(tmp_path / "first", "cpu")
    return UnitEncoder(encoder, fit_codebook(CodebookConfig(k=6, layer=3, n_init=1), encoder, corpus))


def test_the_nearest_centroid_has_the_highest_score():
    generator = torch.Generator().manual_seed(0)
    centroids, features = torch.randn(7, 4, generator=generator), torch.randn(2, 5, 4, generator=generator)
    distances = torch.cdist(features.flatten(0, 1), centroids).view(2, 5, 7)
    scores = CodebookHead(centroids)(features)
    assert torch.equal(scores.argmax(-1), distances.argmin(-1))
    owner = torch.tensor([0, 0, 1, 2, 2, 1, 0])
    parts = CodebookHead(centroids, owner)(features)
    assert parts.shape == (2, 5, 3) and torch.equal(parts.argmax(-1), owner[distances.argmin(-1)])


def test_a_part_has_the_chances_of_all_its_centroids():
    generator = torch.Generator().manual_seed(0)
    centroids, features = torch.randn(7, 4, generator=generator), torch.randn(2, 5, 4, generator=generator)
    owner = torch.tensor([0, 0, 1, 2, 2, 1, 0])
    chances = CodebookHead(centroids)(features).softmax(-1)
    parts = CodebookHead(centroids, owner, "sum")(features).softmax(-1)
    for part in range(3):
        assert torch.allclose(parts[..., part], chances[..., owner == part].sum(-1), atol=1e-6)


def test_units_belong_to_the_part_that_they_mostly_stand_for():
    units = torch.tensor([0, 0, 0, 1, 1, 3, 3])
    phones = torch.tensor([4, 4, 2, 2, -100, -100, -100])
    assert unit_owners(units, phones, 4).tolist() == [4, 2, 5, 5]  # 2 is never heard, 3 never aligned


def test_a_unit_heard_wrongly_is_no_label(teacher):
    class Sampler:
        def __init__(self, units, phones):
            self.labels = [torch.tensor(units, dtype=torch.int16), torch.tensor(phones, dtype=torch.int16)]

    train = Sampler([0, 0, 0, 1, 1, 2], [7, 7, 3, 3, 3, IGNORED])
    dev = Sampler([0, 1, 1], [7, 7, 9])
    heads = kept_heads(teacher, ["units", "phones"], "sum", train, dev)
    assert train.labels[0].tolist() == [0, 0, IGNORED, 1, 1, 2]
    assert train.labels[1].tolist() == [1, 1, 0, 0, 0, IGNORED]  # parts 3 and 7, and one of units unheard
    assert dev.labels[0].tolist() == [0, IGNORED, IGNORED] and dev.labels[1].tolist() == [1, 1, IGNORED]
    assert heads[0].owner is None and heads[1].owner.tolist() == [1, 0, 2, 2, 2, 2]


def test_the_encoder_changes_and_its_codebook_does_not(corpus, tmp_path, teacher):
    config = a_config(
        tmp_path,
        targets=[{"kind": "units"}, {"kind": "phones", "states_per_phone": 1}],
        head=KEPT | {"group": "sum"},
        architecture=LAYER,
        augment={"trim": 0.3, "noise_chance": 0.5},
        training={"steps": 40, "batch_size": 8, "learning_rate": 2e-3, "log_every": 20},
    )
    metrics = pretrain(config, corpus, tmp_path / "kept", "cpu", teacher, tmp_path / "first")
    assert {"units_unmasked_accuracy", "dev_phones_unmasked_accuracy"} <= metrics.keys()
    after = UnitEncoder.load(tmp_path / "kept", tmp_path / "kept" / "codebook.safetensors", device="cpu")
    assert torch.equal(after.codebook.centroids, teacher.codebook.centroids)
    assert after.encoder.fingerprint != teacher.encoder.fingerprint
    assert after.codebook.as_fitted().to_bytes() == teacher.codebook.to_bytes()
    again = after.codebook.kept_for(teacher.encoder).provenance
    assert again.kept_from == teacher.encoder.fingerprint  # of the first, however often it is trained
    # The units of clean audio stay what they were, mostly; a few steps bring the features nearer to them.
    waveform = np.concatenate([np.sin(np.arange(9000) / 9), np.sin(np.arange(9000) / 2)]).astype(np.float32)
    assert (after.encode([waveform])[0] == teacher.encode([waveform])[0]).mean() > 0.6


def test_fresh_weights_learn_a_codebook_that_is_not_theirs(corpus, tmp_path, teacher):
    """As the encoders of folds do: no weight is the teacher's, and the units mean the same."""
    quiet = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    config = a_config(
        tmp_path,
        targets=[{"kind": "units", "weight": 0.6}, {"kind": "phones", "states_per_phone": 1}],
        head=KEPT | {"group": "sum", "masked_weight": 0.3},
        architecture=LAYER | quiet,
        masking={"start_chance": 0.03, "span": 4},
        training={"steps": 90, "batch_size": 8, "learning_rate": 1e-2, "log_every": 30, "seed": 5},
    )
    metrics = pretrain(config, corpus, tmp_path / "fresh", "cpu", teacher)
    # The commonest unit is 31 % of dev; after one step 13 % of units and 48 % of phones are right.
    assert metrics["dev_units_unmasked_accuracy"] > 0.45 and metrics["dev_phones_unmasked_accuracy"] > 0.65
    after = UnitEncoder.load(tmp_path / "fresh", tmp_path / "fresh" / "codebook.safetensors", device="cpu")
    assert torch.equal(after.codebook.centroids, teacher.codebook.centroids)


def test_what_does_not_fit_is_refused(corpus, tmp_path, teacher):
    units = [{"kind": "units"}]
    with pytest.raises(ValueError, match="needs --teacher ENCODER"):
        pretrain(a_config(tmp_path, targets=units, head=KEPT), corpus, tmp_path / "a", "cpu")
    with pytest.raises(ValueError, match="targets phones; expected units"):
        pretrain(a_config(tmp_path, head=KEPT), corpus, tmp_path / "b", "cpu", teacher)
    with pytest.raises(ValueError, match="predicts from layer .2., the codebook is of layer 3"):
        config = a_config(tmp_path, targets=units, head=KEPT | {"layers": [2]})
        pretrain(config, corpus, tmp_path / "c", "cpu", teacher)
    other = Codebook(teacher.codebook.centroids[:, :8], teacher.codebook.provenance)
    with pytest.raises(ValueError, match="8 wide"):
        UnitEncoder(teacher.encoder, other)
