"""The losses of the vocoder's training: HiFi-GAN's, summed as SpeechBrain does, and the durations'."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEL_BANDS = 80
MEL_WINDOW = 1024  # samples
MEL_HOP = 256  # samples
MEL_FLOOR = 1e-5  # of the magnitude, before the logarithm


@dataclass
class LossWeights:
    """Published weights. The names are those of the losses."""

    mel: float = 45.0
    adversarial: float = 1.0
    features: float = 10.0
    durations: float = 1.0


class LogMel(nn.Module):
    """(B, T) waveforms to (B, 80, M) log-mel: SpeechBrain's L1SpecLoss with its tables built once."""

    def __init__(self, sample_rate: int):
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        bands = melscale_fbanks(
            MEL_WINDOW // 2 + 1,
            0.0,
            sample_rate / 2,
            MEL_BANDS,
            sample_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("bands", bands.t().contiguous(), persistent=False)  # 80 513
        self.register_buffer("window", torch.hann_window(MEL_WINDOW), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        spectrum = torch.stft(
            waveform.float(), MEL_WINDOW, MEL_HOP, window=self.window, return_complex=True, pad_mode="reflect"
        )  # B 513 M
        return torch.log(torch.matmul(self.bands, _magnitude(spectrum)).clamp(min=MEL_FLOOR))  # B 80 M


def _magnitude(spectrum: Tensor) -> Tensor:
    """|z| whose gradient at 0 is 0, where a padded silence would otherwise give none."""
    power = spectrum.real.square() + spectrum.imag.square()
    return torch.where(power == 0, torch.zeros_like(power), power.clamp(min=1e-20).sqrt())


def discriminator_loss(scores_real: list[Tensor], scores_fake: list[Tensor]) -> Tensor:
    """Squared distance to 1 on real and to 0 on made sound, summed over the discriminators' scores (B, S)."""
    pairs = zip(scores_real, scores_fake, strict=True)
    return sum((real.float() - 1).square().mean() + fake.float().square().mean() for real, fake in pairs)


def adversarial_loss(scores_fake: list[Tensor]) -> Tensor:
    """Squared distance to 1 on made sound, summed over the discriminators' scores (B, S)."""
    return sum((fake.float() - 1).square().mean() for fake in scores_fake)


def feature_loss(features_fake: list[list[Tensor]], features_real: list[list[Tensor]]) -> Tensor:
    """Mean over all layers of the mean absolute difference of features, summed in float32."""
    pairs = zip(sum(features_fake, []), sum(features_real, []), strict=True)
    distances = [(fake - real).abs().mean(dtype=torch.float32) for fake, real in pairs]
    return sum(distances) / len(distances)


def duration_loss(log_durations: Tensor, durations: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of log(1 + frames) over (B, U) where `mask`; durations in frames."""
    error = (log_durations.float() - torch.log1p(durations.float())).square() * mask
    return error.sum() / mask.sum().clamp(min=1)


def mel_loss(mel_fake: Tensor, mel_real: Tensor) -> Tensor:
    return F.l1_loss(mel_fake, mel_real)
