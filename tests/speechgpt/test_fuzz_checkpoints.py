"""Mutated checkpoints end in a conversion or in one error that names the file. FUZZ=10000 mutates more."""

import io
import json
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from speechgpt.data.inert import read_inert
from speechgpt.units.fairseq_hubert import convert_hubert, is_fairseq_speech
from speechgpt.units.kmeans_file import convert_kmeans, is_kmeans
from speechgpt.vocoder.published import convert_generator, is_generator

from ..conftest import tiny_codebook, tiny_encoder, tiny_vocoder
from ..foreign_files import codehifigan_config, save_codehifigan, save_fairseq, save_kmeans

COUNT = int(os.environ.get("FUZZ", 200))
SLOWEST = 30.0  # seconds a file; they take hundredths, but the machine may be busy
MAX_BYTES = 1 << 26


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder()


@pytest.fixture(scope="module")
def whole(encoder, tmp_path_factory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("whole")
    save_fairseq(folder / "new.pt", encoder)
    save_fairseq(folder / "nodes.pt", encoder, "omegaconf")
    save_fairseq(folder / "old.pt", encoder, "args", _use_new_zipfile_serialization=False)
    centroids = tiny_codebook(encoder).centroids.numpy()
    for number, compress in enumerate((0, *((name, 3) for name in ("zlib", "gzip", "bz2", "lzma", "xz")))):
        save_kmeans(folder / f"{number}.bin", centroids, compress)
    save_codehifigan(folder, tiny_vocoder(), name="g")
    return [path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "config.json"]


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """A few bytes changed, put in or cut off; in a zip mostly in its pickle, with the checksum made right."""
    if data.startswith(b"PK") and random.integers(4):
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
            for info in old.infolist():
                content = old.read(info)
                changed = info.filename.endswith("data.pkl")
                new.writestr(info.filename, mutated(content, random) if changed else content)
        return out.getvalue()
    broken = bytearray(data)
    span = len(broken) if random.integers(2) else min(len(broken), 20_000)  # where names and sizes are
    for place in random.integers(0, span, 1 + random.integers(6)):
        broken[place] = random.integers(256)
    kind, place = random.integers(4), random.integers(1, len(broken))
    if kind == 0:
        broken[place:place] = random.bytes(1 + int(random.integers(8)))
    return bytes(broken[:place] if kind == 1 else broken)


def convert(path: Path, encoder, config: dict) -> None:
    tree = read_inert(path, max_bytes=MAX_BYTES)
    if is_fairseq_speech(tree):
        convert_hubert(tree, str(path))
    elif is_kmeans(tree):
        convert_kmeans(tree, path, encoder, 2)
    elif is_generator(tree):
        convert_generator(tree, config, str(path), str(path))


@pytest.mark.timeout(3600)
def test_mutated_checkpoints_end_in_clear_errors(encoder, whole, tmp_path):
    random, config = np.random.default_rng(0), json.loads(json.dumps(codehifigan_config(tiny_vocoder())))
    path, refused = tmp_path / "x.bin", 0
    for number in range(COUNT):
        path.write_bytes(mutated(whole[number % len(whole)], random))
        started = time.monotonic()
        try:
            convert(path, encoder, config)
        except ValueError as error:
            assert str(path) in str(error) and str(error).isprintable() and len(str(error)) < 2000
            refused += 1
        assert time.monotonic() - started < SLOWEST
    assert refused > COUNT // 2
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]
