"""`--backend` of encode and decode: our code, or fairseq's own on its original files, to compare."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

OURS, FAIRSEQ = "native", "fairseq"


def add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        choices=(OURS, FAIRSEQ),
        default=OURS,
        help="fairseq: its own code on original files; needs the extra speechgpt[fairseq]",
    )


def encoder_loader(backend: str) -> Callable[..., Any]:
    """(encoder, codebook, layer, device) to what has `encode_file`."""
    from speechgpt.model_dir import load_encoder

    return load_encoder if backend == OURS else fairseq_encoder


def fairseq_encoder(encoder: Path, codebook: Path, layer: int | None, device: str = "auto"):
    """fairseq's HuBERT with a pickled k-means. ValueError where either is no original file."""
    from speechgpt.originals import CODEBOOK, of_kind
    from speechgpt.units.devices import choose_device
    from speechgpt.units.fairseq_backend import FairseqHubert, FairseqUnits
    from speechgpt.units.kmeans_file import kmeans_layer, read_centroids

    _check_originals({"--encoder": encoder, "--codebook": codebook}, "mhubert.pt", "km1000.bin")
    layer = kmeans_layer(codebook, layer)
    centroids = read_centroids(of_kind(codebook, CODEBOOK).value, str(codebook))
    return FairseqUnits(FairseqHubert.load(encoder, choose_device(device)), centroids, layer)


def fairseq_vocoder(vocoder: Path | None, config: Path | None, device: str = "auto"):
    """fairseq's CodeHiFiGAN. ValueError where the vocoder is no original file."""
    from speechgpt.originals import VOCODER, of_kind, of_kind_config, vocoder_config
    from speechgpt.units.devices import choose_device
    from speechgpt.vocoder.fairseq_backend import FairseqVocoder

    _check_originals({"--vocoder": vocoder}, "g_00500000")
    original = of_kind(vocoder, VOCODER)
    found = vocoder_config(original, of_kind_config(config) if config else None)
    if found is None:
        raise ValueError(f"{vocoder}: a generator of SpeechBrain, which fairseq cannot run")
    return FairseqVocoder.load(vocoder, found.path, choose_device(device))


def _check_originals(paths: dict[str, Path | None], *examples: str) -> None:
    from speechgpt.originals import is_original
    from speechgpt.units.fairseq_backend import import_fairseq

    if wrong := [option for option, path in paths.items() if path is None or not is_original(path)]:
        wanted = " ".join(f"{o} {e}" for o, e in zip(paths, examples, strict=True))
        missing = [p for p in paths.values() if p is not None and not p.exists()]
        if missing:
            raise FileNotFoundError(f"{missing[0]}: no such file")
        raise ValueError(
            f"--backend fairseq runs original files alone, and {' and '.join(wrong)} is none: give {wanted}"
        )
    import_fairseq()
