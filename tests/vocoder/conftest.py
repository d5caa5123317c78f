from dataclasses import replace

import numpy as np
import pytest
import torch

from speechgpt.data.audio import write_wav
from speechgpt.data.rows import UnitRow, Utterance, write_manifest, write_units
from speechgpt.vocoder.discriminators import DiscriminatorConfig
from speechgpt.vocoder.generator import UnitVocoder, VocoderConfig
from speechgpt.vocoder.settings import TrainConfig

K = 6
HOP = 320
SPEAKERS = ["ann", "bob"]


@pytest.fixture
def small() -> VocoderConfig:
    """A minuscule generator of one voice."""
    return VocoderConfig(
        num_units=K,
        embedding_dim=8,
        speaker_dim=4,
        initial_channels=32,
        upsample_rates=[8, 8, 5],
        upsample_kernels=[16, 16, 11],
        resblock_kernels=[3, 5],
        resblock_dilations=[[1, 2], [1]],
        duration_width=16,
    )


@pytest.fixture
def two_voices(small) -> VocoderConfig:
    return replace(small, num_speakers=2, speakers=SPEAKERS, default_speaker="bob", duration_speaker=True)


@pytest.fixture
def make_vocoder():
    """Makes a vocoder of random weights that are loud enough for differences to show."""

    def make(config: VocoderConfig) -> UnitVocoder:
        torch.manual_seed(0)
        model = UnitVocoder(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.2)
            model.dur_predictor.proj.bias.fill_(1.2)
        return model

    return make


@pytest.fixture
def train_config(small) -> TrainConfig:
    return TrainConfig(
        generator=replace(small, num_units=K, duration_dropout=0.2),
        discriminator=DiscriminatorConfig(periods=[2, 3], scales=1, period_width=1 / 16, scale_width=1 / 16),
        multi_speaker=True,
        steps=12,
        warmup_steps=6,
        warmup_learning_rate=3e-3,
        learning_rate=1e-3,
        batch_size=4,
        segment_frames=8,
        duration_window=12,
        ema=0.5,
        log_every=3,
        check_rows=2,
    )


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with 8 utterances of two speakers: every unit is a tone."""
    root = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    utterances, rows = [], []
    for number in range(8):
        units = [int(u) for u in random.permutation(K)] + [int(random.integers(K))]
        units = [u for i, u in enumerate(units) if i == 0 or u != units[i - 1]]
        durations = [int(d) for d in random.integers(2, 5, len(units))]
        pitch = np.repeat(200.0 * (1 + np.array(units)), np.array(durations) * HOP)
        waveform = 0.05 * np.sin(2 * np.pi * np.cumsum(pitch) / 16_000)
        waveform = np.concatenate([waveform, np.zeros(80)]).astype(np.float32)
        write_wav(root / f"{number}.wav", waveform)
        split = "dev" if number > 5 else "train"
        seconds = len(waveform) / 16_000
        utterances.append(
            Utterance(f"u{number}", f"{number}.wav", seconds, SPEAKERS[number % 2], "toy", split=split)
        )
        rows.append(UnitRow(f"u{number}", units, durations))
    write_manifest(root / "manifest.jsonl", utterances)
    write_units(root / "units.jsonl", rows)
    return root
