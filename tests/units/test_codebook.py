"""Centroids come from real features, know their encoder, and are assigned by distance."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import yaml

from speechgpt.data.rows import read_manifest, write_manifest
from speechgpt.units import codebook as module
from speechgpt.units import extraction
from speechgpt.units import windows as windows_module
from speechgpt.units.codebook import Codebook, Provenance
from speechgpt.units.codebook_fitting import CodebookConfig, fit_codebook, fit_kmeans, main, sample_features
from speechgpt.units.prototypes import fit_prototypes, share_out

from .conftest import GROUP, LAYER, make_encoder


def a_codebook(encoder, layer: int = 2, k: int = 5) -> Codebook:
    centroids = torch.randn(k, 16, generator=torch.Generator().manual_seed(0))
    return Codebook(centroids, Provenance(encoder.fingerprint, layer, 16_000, encoder.hop, encoder.normalize))


def test_assignment_is_the_nearest_centroid():
    book = a_codebook(make_encoder(GROUP), k=50)
    features = torch.randn(300, 16, generator=torch.Generator().manual_seed(1))
    expected = (features[:, None] - book.centroids[None]).square().sum(-1).argmin(-1)
    assert torch.equal(book.assign(features), expected)
    assert book.assign(features[:0]).shape == (0,)
    with pytest.raises(ValueError, match="features are 3 wide, the centroids 16"):
        book.assign(torch.zeros(2, 3))


def test_ties_go_to_the_lowest_index(monkeypatch):
    monkeypatch.setattr(module, "ASSIGN_CHUNK", 7)
    book = a_codebook(make_encoder(GROUP))
    twice = Codebook(torch.cat([book.centroids, book.centroids]), book.provenance)
    assert twice.assign(torch.randn(40, 16)).max() < 5


def test_a_saved_codebook_keeps_its_provenance(tmp_path):
    book = a_codebook(make_encoder(GROUP))
    book.save(tmp_path / "book.safetensors")
    loaded = Codebook.load(tmp_path / "book.safetensors")
    assert loaded.provenance == book.provenance and torch.equal(loaded.centroids, book.centroids)
    once = (tmp_path / "book.safetensors").read_bytes()
    for _ in range(20):  # vocoders know their codebook by its hash
        loaded.save(tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == once
    (tmp_path / "other").write_bytes(b"x")
    with pytest.raises(ValueError, match="not a codebook file"):
        Codebook.load(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="no such codebook"):
        Codebook.load(tmp_path / "none")


def test_another_encoder_or_layer_is_refused_by_name():
    encoder, other = make_encoder(GROUP), make_encoder(GROUP, seed=1)
    book = a_codebook(encoder)
    book.check(encoder, 2)
    with pytest.raises(ValueError) as error:
        book.check(other, 3)
    for expected in (encoder.fingerprint[:12], other.fingerprint[:12], "of layer 2, here it is 3"):
        assert expected in str(error.value)
    with pytest.raises(ValueError, match="of normalize True, here it is False"):
        book.check(make_encoder(GROUP, normalize=False), 2)


def test_a_rounded_copy_of_the_encoder_is_accepted(tmp_path):
    encoder = make_encoder(LAYER)
    encoder.save(tmp_path, torch.float16)
    a_codebook(encoder).check(type(encoder).load(tmp_path, "cpu"), 2)


def test_fitting_samples_frames_by_corpus_and_repeats_itself(corpus):
    encoder = make_encoder(LAYER)
    config = CodebookConfig(k=6, layer=2, frames=200, n_init=1, sampling={"odd": 3.0, "*": 1.0})
    book = fit_codebook(config, encoder, corpus)
    assert book.size == 6 and 140 < book.provenance.frames < 260
    assert torch.equal(fit_codebook(config, encoder, corpus).centroids, book.centroids)
    book.check(encoder, 2)
    config.sampling = {"none": 1.0}
    with pytest.raises(ValueError, match="sampling names none; the manifest has even, odd"):
        fit_codebook(config, encoder, corpus)
    with pytest.raises(ValueError, match="frames for 900 centroids"):
        fit_codebook(CodebookConfig(k=900, layer=2), encoder, corpus)


def test_command_and_its_config(corpus, tmp_path, capsys):
    make_encoder(LAYER).save(tmp_path / "encoder")
    config = tmp_path / "codebook.yaml"
    config.write_text(yaml.safe_dump({"k": 4, "layer": 1, "n_init": 1}))
    arguments = ["--config", str(config), "--encoder", str(tmp_path / "encoder"), "--manifest", str(corpus)]
    assert main([*arguments, "--out", str(tmp_path / "k.safetensors"), "--device", "cpu"]) == 0
    assert Codebook.load(tmp_path / "k.safetensors").size == 4
    config.write_text("k: 4\nlayers: 2\n")
    with pytest.raises(ValueError, match="unknown setting layers; known: k, .*missing setting layer"):
        CodebookConfig.load(config)


def test_a_file_in_windows_keeps_the_phones_of_every_frame(corpus, monkeypatch):
    """Labels are of the whole file's frames, not of the last window's, counted from its start."""
    encoder, rows = make_encoder(GROUP), [row for row in read_manifest(corpus) if row.phones]
    config = CodebookConfig(k=12, layer=2, method="phones", states_per_phone=1)
    keep = [(row, 1.0) for row in rows]
    features, labels = sample_features(encoder, corpus, keep, config)
    monkeypatch.setattr(extraction, "WINDOW_SECONDS", 1.0)
    windows = partial(windows_module.window_features, window_seconds=0.3)
    monkeypatch.setattr(extraction, "window_features", windows)
    found, same = sample_features(encoder, corpus, keep, config)
    assert sum(row.seconds > 1 for row in rows) > 3 and len(set(labels)) == 4
    assert np.array_equal(same, labels) and found.shape == features.shape
    np.testing.assert_allclose(found, features, atol=1e-3)


@pytest.mark.parametrize("window_seconds", [60.0, 1.0])
def test_rows_whose_features_are_not_finite_are_named(corpus, monkeypatch, window_seconds):
    """row9 comes after others in its batch, or in windows of its own."""
    encoder = make_encoder(GROUP)
    monkeypatch.setattr(extraction, "WINDOW_SECONDS", window_seconds)
    plain, long = encoder.frames_of, extraction.window_features
    heard = {row.id: round(row.seconds * 16_000) for row in read_manifest(corpus)}

    def frames_of(waveforms, *given):
        features, frames = plain(waveforms, *given)
        for waveform, part in zip(waveforms, features.split(frames), strict=True):
            part[3] = torch.nan if len(waveform) == heard["row9"] else part[3]
        return features, frames

    def in_windows(encoder, waveform, layer):
        for piece in long(encoder, waveform, layer):
            yield piece * torch.nan if len(waveform) == heard["row9"] else piece

    monkeypatch.setattr(encoder, "frames_of", frames_of)
    monkeypatch.setattr(extraction, "window_features", in_windows)
    for method in ("kmeans", "phones"):
        config = CodebookConfig(k=4, layer=2, method=method, states_per_phone=1, n_init=1)
        with pytest.raises(ValueError, match=r"\brow9\b.*: features that are no finite numbers"):
            fit_codebook(config, encoder, corpus)


def test_prototypes_follow_the_phones_where_kmeans_follows_the_variance():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 4000)
    sample = rng.normal(0, 1, (4000, 6)).astype(np.float32)
    sample[:, 0] *= 12  # a voice, say: varies most and says nothing
    sample[:, 1] += labels * 6

    def right(centroids: np.ndarray) -> float:
        book = Codebook(torch.from_numpy(centroids), Provenance("", 1, 16_000, 320, False))
        units = book.assign(torch.from_numpy(sample)).numpy()
        return sum(np.bincount(labels[units == u]).max() for u in set(units)) / len(labels)

    taught = fit_prototypes(sample, labels, 8, seed=0, passes=300)
    assert taught.shape == (8, 6) and taught.dtype == np.float32
    assert np.array_equal(taught, fit_prototypes(sample, labels, 8, seed=0, passes=300))
    assert right(taught) > 0.95 > 0.6 > right(fit_kmeans(sample, 8, 0, n_init=1))


def test_every_phone_part_gets_a_centroid_and_frequent_ones_more():
    assert share_out(np.array([100, 0, 1, 10_000]), 6).tolist() == [1, 0, 1, 4]
    with pytest.raises(ValueError, match="k is 2; expected at least one centroid for each of 3"):
        share_out(np.array([100, 0, 1, 10_000]), 2)
    with pytest.raises(ValueError, match="5 labelled frames for 8 centroids"):
        fit_prototypes(np.zeros((5, 2), np.float32), np.zeros(5, np.int64), 8, 0)


def test_a_codebook_of_phones_is_fitted_to_labelled_rows(corpus):
    encoder = make_encoder(GROUP)
    config = CodebookConfig(k=12, layer=2, method="phones", passes=2, states_per_phone=1)
    book = fit_codebook(config, encoder, corpus)
    assert len(book) == 12 and 0 < book.provenance.frames
    book.check(encoder, 2)
    rows = [replace(row, phones=[]) for row in read_manifest(corpus)]
    write_manifest(corpus, rows)
    with pytest.raises(ValueError, match="method phones needs rows with phones; `speechgpt align` adds them"):
        fit_codebook(config, encoder, corpus)
    with pytest.raises(ValueError, match="method: 'knn', expected one of kmeans, phones"):
        CodebookConfig(k=2, layer=1, method="knn")
