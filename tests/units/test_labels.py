"""One label a frame: under the frame's centre, from MFCCs, phones or an earlier encoder."""

import numpy as np
import pytest
import torch

from speechgpt.data.rows import Utterance, read_manifest
from speechgpt.data.speaking import ARPABET
from speechgpt.units.audio_pool import IGNORED, AudioPool
from speechgpt.units.codebook import Codebook, Provenance
from speechgpt.units.labels import PHONES, Target, frame_counts, make_labels, mfcc, phone_labels
from speechgpt.units.unit_encoder import UnitEncoder

from .conftest import ALONE, LAYER, make_encoder, noise, pool_of

SILENCE_OF_3 = 39 * 3


def labels_of(target: Target, pools: list[AudioPool], teacher=None):
    return make_labels(target, pools, 320, 400, 0, teacher, ALONE)


def test_phones_are_those_of_the_corpora():
    assert PHONES == ARPABET and len(PHONES) == 39


def test_phone_labels_are_thirds_under_the_frame_centres():
    # 1 s: silence to 0.2 s, AA to 0.5 s, S to 0.8 s, silence.
    found = phone_labels(
        [["SIL", 0.2], ["AA", 0.5], ["S", 0.8], ["SIL", 1.0]], 49, 320, 400, 16_000, 3
    ).tolist()
    aa, s = PHONES.index("AA") * 3, PHONES.index("S") * 3
    centres = [(n * 320 + 200) / 16_000 for n in range(49)]
    for centre, label in zip(centres, found, strict=True):
        if centre < 0.2 or centre >= 0.8:
            assert label == SILENCE_OF_3
        else:
            start, base = (0.2, aa) if centre < 0.5 else (0.5, s)
            assert label == base + int((centre - start) / 0.1 + 1e-9)
    single = phone_labels([["AA", 0.5], ["SIL", 1.0]], 49, 320, 400, 16_000, 1)
    assert set(single.tolist()) == {PHONES.index("AA"), 39}


def test_frames_past_the_last_phone_and_rows_without_phones():
    assert phone_labels([["AA", 0.1]], 20, 320, 400, 16_000, 1).tolist() == [PHONES.index("AA")] * 20
    assert phone_labels([], 3, 320, 400, 16_000, 3).tolist() == [IGNORED] * 3
    with pytest.raises(ValueError, match="unknown phone AX"):
        phone_labels([["AX", 1.0]], 3, 320, 400, 16_000, 3)


def test_labels_of_a_manifest_follow_its_frames(corpus):
    pool = pool_of(read_manifest(corpus), corpus)
    (found,), classes = labels_of(Target("phones"), [pool])
    counts = frame_counts(pool, 320, 400)
    assert len(found) == sum(counts) and classes == 118 and int(found.max()) < classes
    assert (found[: counts[0]] == IGNORED).all() and (found[counts[0] : counts[0] + counts[1]] >= 0).all()
    (mine,), classes = labels_of(Target("mfcc", k=7, only_without_phones=True), [pool])
    assert classes == 7 and torch.equal(mine == IGNORED, found != IGNORED)
    (again,), _ = labels_of(Target("mfcc", k=7, only_without_phones=True), [pool])
    assert torch.equal(mine, again)


def test_units_of_a_teacher_are_those_it_encodes(corpus):
    pool = pool_of(read_manifest(corpus), corpus)
    encoder = make_encoder(LAYER)
    features = encoder.features([noise(16_000)], 2)[0]
    teacher = UnitEncoder(
        encoder, Codebook(features[:6], Provenance(encoder.fingerprint, 2, 16_000, 320, True))
    )
    (found,), classes = labels_of(Target("units"), [pool], teacher)
    assert classes == 6
    counts = frame_counts(pool, 320, 400)
    (expected,) = teacher.encode([pool.waveform(1).numpy()])
    assert np.array_equal(found[counts[0] : counts[0] + counts[1]].numpy(), expected)
    with pytest.raises(ValueError, match="needs --teacher"):
        labels_of(Target("units"), [pool])


def test_mfcc_hears_what_is_said_and_not_how_loud():
    waveform = torch.from_numpy(noise(16_000))
    found = mfcc(waveform, 320, 400, 16_000)
    assert found.shape == (49, 39) and torch.isfinite(found).all()
    quieter = mfcc(waveform / 4, 320, 400, 16_000)
    torch.testing.assert_close(found[:, 1:13], quieter[:, 1:13], atol=1e-3, rtol=0)
    assert (found[:, 0] > quieter[:, 0]).all()
    ramp = mfcc(torch.zeros(4000), 320, 400, 16_000)
    assert torch.isfinite(ramp).all() and ramp[:, 13:].abs().max() < 1e-4


def test_targets_are_checked(corpus):
    with pytest.raises(ValueError, match="expected mfcc, units or phones"):
        Target("words")
    pool = AudioPool(
        [Utterance("a", "a.wav", 1.0)],
        torch.zeros(16_000, dtype=torch.int16),
        torch.zeros(1, dtype=torch.int64),
        torch.tensor([16_000]),
        16_000,
    )
    with pytest.raises(ValueError, match="no training row has phones"):
        labels_of(Target("phones"), [pool])
