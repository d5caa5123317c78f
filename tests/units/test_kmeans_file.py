"""Pickled k-means become codebooks that know their encoder and layer."""

from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.cluster import KMeans, MiniBatchKMeans

from speechgpt.data.inert import read_inert
from speechgpt.units.codebook import Codebook
from speechgpt.units.kmeans_file import convert_kmeans, is_kmeans, layer_in_name, read_centroids

from ..foreign_files import save_kmeans
from .conftest import GROUP, make_encoder


@pytest.mark.parametrize("kind", [KMeans, MiniBatchKMeans])
@pytest.mark.parametrize("compress", [0, ("zlib", 3), ("lzma", 1)])
def test_centroids_of_todays_scikit_learn(tmp_path, kind, compress):
    fitted = kind(5, n_init=1).fit(np.random.default_rng(0).standard_normal((60, 16)).astype(np.float32))
    joblib.dump(fitted, tmp_path / "km.bin", compress=compress)
    tree = read_inert(tmp_path / "km.bin")
    assert is_kmeans(tree) and np.array_equal(read_centroids(tree, "km.bin"), fitted.cluster_centers_)


def test_centroids_of_a_scikit_learn_that_is_gone(tmp_path):
    """The true shape of the published one, compressed."""
    centroids = np.random.default_rng(0).standard_normal((1000, 768)).astype(np.float32)
    save_kmeans(tmp_path / "km.bin", centroids, compress=3)
    assert np.array_equal(read_centroids(read_inert(tmp_path / "km.bin"), "km.bin"), centroids)


def test_a_codebook_knows_encoder_layer_and_source(tmp_path):
    encoder = make_encoder(GROUP)
    centroids = np.random.default_rng(0).standard_normal((4, 16))  # float64, as KMeans may leave them
    path = tmp_path / "hubert_L2_km4.bin"
    save_kmeans(path, centroids)
    tree = read_inert(path)
    book = convert_kmeans(tree, path, encoder, None, {"file": path.name})
    book.check(encoder, 2)
    book.save(tmp_path / "codebook.safetensors")
    loaded = Codebook.load(tmp_path / "codebook.safetensors")
    assert loaded.provenance == book.provenance and loaded.source == {"file": path.name}
    assert np.array_equal(loaded.centroids.numpy(), centroids.astype(np.float32))
    assert convert_kmeans(tree, tmp_path / "km.bin", encoder, 3).provenance.layer == 3
    with pytest.raises(ValueError, match="its name says layer 2, --layer 3"):
        convert_kmeans(tree, path, encoder, 3)
    with pytest.raises(ValueError, match="give --layer"):
        convert_kmeans(tree, tmp_path / "km.bin", encoder, None)
    with pytest.raises(ValueError, match="layer 9: this encoder has layers 1 to 3"):
        convert_kmeans(tree, tmp_path / "km.bin", encoder, 9)


@pytest.mark.parametrize("found", [None, "x", np.zeros(3, np.float32), np.zeros((2, 0), np.float32)])
def test_centroids_that_are_none_are_refused(found):
    with pytest.raises(
        ValueError, match=r"km.bin: cluster_centers_ is .*; expected numbers of shape \(K, D\)"
    ):
        read_centroids({"cluster_centers_": found}, "km.bin")
    with pytest.raises(ValueError, match="not finite"):
        read_centroids({"cluster_centers_": np.full((2, 2), np.nan)}, "km.bin")


@pytest.mark.parametrize(
    "name, layer",
    [
        ("mhubert_base_vp_en_es_fr_it3_L11_km1000.bin", 11),
        ("km500_layer9.bin", 9),
        ("hubert_l6.km", 6),
        ("km1000.bin", None),
        ("XL2000km.bin", None),
    ],
)
def test_layers_in_names(name, layer):
    assert layer_in_name(Path(name)) == layer
