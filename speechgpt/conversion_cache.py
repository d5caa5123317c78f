"""Original files where a loader expects ours: converted once, and kept under the hashes of their sources."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from speechgpt.data.hashes import text_hash
from speechgpt.originals import (
    CODEBOOK,
    CONVERTER,
    ENCODER,
    VOCODER,
    cache_folder,
    is_original,
    of_kind,
    of_kind_config,
    source_hash,
    vocoder_config,
    write_codebook,
    write_encoder,
    write_vocoder,
)


def ready_encoder(path: Path) -> Path:
    """An encoder folder: the one given, or the conversion of a fairseq checkpoint."""
    if not is_original(path):
        return path

    def make(folder: Path) -> None:
        write_encoder(of_kind(path, ENCODER), folder)

    return _cached(path, [ENCODER, source_hash(path)], make)


def ready_codebook(path: Path, encoder: Path, layer: int | None) -> Path:
    """A codebook file: the one given, or the conversion of a k-means of this encoder (a folder) and layer."""
    from speechgpt.units.encoder import Encoder
    from speechgpt.units.encoder_files import CONFIG_FILE, ENCODER_FILE, WEIGHTS_FILE
    from speechgpt.units.kmeans_file import kmeans_layer

    if not is_original(path):
        return path
    layer = kmeans_layer(path, layer)
    parts = [encoder / name for name in (WEIGHTS_FILE, CONFIG_FILE, ENCODER_FILE)]
    # A hub name has no files here.
    hashes = [source_hash(p) for p in parts if p.is_file()] or [Encoder.load(encoder, "cpu").fingerprint]

    def make(folder: Path) -> None:
        write_codebook(of_kind(path, CODEBOOK), encoder, layer, folder / "codebook.safetensors")

    return _cached(path, [CODEBOOK, source_hash(path), *hashes, layer], make) / "codebook.safetensors"


def ready_vocoder(path: Path, config: Path | None = None) -> Path:
    """A vocoder folder: the one given, or the conversion of a generator and its config.json (or `config`)."""
    if not is_original(path):
        if config is not None:
            raise ValueError(f"{path}: --vocoder-config goes with a CodeHiFiGAN generator file alone")
        return path
    beside = config or path.parent / "config.json"
    hashes = [source_hash(part) for part in (path, beside) if part.is_file()]

    def make(folder: Path) -> None:
        original = of_kind(path, VOCODER)
        given = of_kind_config(config) if config else None
        write_vocoder(original, vocoder_config(original, given), folder)

    return _cached(path, [VOCODER, *hashes], make)


def _cached(path: Path, key: list, make: Callable[[Path], None]) -> Path:
    """The folder of this key, made if need be; two processes that make it at once get the same one."""
    from speechgpt.model import make_readable

    folder = cache_folder() / "converted" / f"{key[0]}-{text_hash(CONVERTER, *key)}"
    if folder.is_dir():
        return folder
    print(f"converting {path} once, to {folder}", file=sys.stderr, flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        make(part)
        make_readable(part)
        try:
            os.rename(part, folder)
        except OSError:
            if not folder.is_dir():  # nobody else was faster
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder
