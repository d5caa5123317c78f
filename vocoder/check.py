"""How near a vocoder comes to held-out recordings: log-mel distance and durations."""

import numpy as np
import torch

from speechgpt.data.rows import UnitRow
from speechgpt.vocoder.generator import UnitVocoder
from speechgpt.vocoder.losses import LogMel, mel_loss
from speechgpt.vocoder.synthesize import Synthesizer


def measure(vocoder: UnitVocoder, rows: list[tuple[UnitRow, np.ndarray]]) -> dict[str, float]:
    """Means over `rows` (unit row, waveform (T,) at the training level).

    `mel`: L1 of log-mel (natural logarithm) with true durations; `duration_error`: absolute error in frames
    a unit; `length_ratio`: predicted over true total length.
    """
    voices = vocoder.config.speakers
    rows = [(row, wave) for row, wave in rows if not voices or row.speaker in voices]
    if not rows:
        return {}
    synthesizer, log_mel = Synthesizer(vocoder), LogMel(vocoder.sample_rate)
    mels, errors, predicted_total, true_total = [], [], 0, 0
    for row, waveform in rows:
        speaker = row.speaker if voices else None
        made = synthesizer.synthesize([row.units], [row.durations], speaker)[0]
        length = min(len(made), len(waveform))
        pair = torch.from_numpy(np.stack([made[:length], waveform[:length]]))  # 2 T
        if length > log_mel.window.numel():
            made_mel, true_mel = log_mel(pair)
            mels.append(float(mel_loss(made_mel, true_mel)))
        if vocoder.dur_predictor is not None:
            predicted, true = synthesizer.durations([row.units], speaker)[0], np.array(row.durations)
            errors.append(float(np.abs(predicted - true).mean()))
            predicted_total, true_total = predicted_total + predicted.sum(), true_total + true.sum()
    result = {"utterances": len(rows), "mel": float(np.mean(mels)) if mels else float("nan")}
    if errors:
        result["duration_error"] = float(np.mean(errors))
        result["length_ratio"] = float(predicted_total / true_total)
    return result
