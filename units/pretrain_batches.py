"""What a step of pretraining sees: by seed, process and step alone, so that a resumed run is exact."""

import random

import torch
from torch import Tensor

from speechgpt.units.audio_pool import CropSampler
from speechgpt.units.augment import augment
from speechgpt.units.encoder import Encoder
from speechgpt.units.masked_prediction import draw_mask, normalize_rows
from speechgpt.units.pretrain_config import PretrainConfig
from speechgpt.units.processes import World

SEED_STRIDE = 1_000_003  # keeps the seeds of steps and of processes apart
EVALUATION_SEED = 17


class Batches:
    """Crops of a sampler's rows, made faster or slower, augmented, normalised and masked."""

    def __init__(self, config: PretrainConfig, encoder: Encoder, world: World) -> None:
        self.config, self.encoder = config, encoder
        self.world, self.device = world, world.device

    @torch.no_grad()
    def draw(
        self, sampler: CropSampler, step: int, evaluating: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Waveforms (B, T), lengths (B,), mask (B, N) and labels, (B, N) of each target, on the device."""
        seed = (self.config.training.seed * SEED_STRIDE + step) * SEED_STRIDE + self.world.rank
        seed = EVALUATION_SEED + step if evaluating else seed % 2**62
        torch.manual_seed(seed)  # for dropout
        drawer = torch.Generator(sampler.pool.samples.device).manual_seed(seed)
        generator = torch.Generator(self.device).manual_seed(seed + 1)
        speeds = [1.0] if evaluating else self._speeds(seed)
        crops = sampler.draw(self.config.training.batch_size, drawer, speeds)
        waveforms = crops.waveforms.to(self.device, non_blocking=True)
        lengths = crops.lengths.to(self.device, non_blocking=True)
        labels = [found.to(self.device, non_blocking=True) for found in crops.labels]
        if not evaluating:
            waveforms = augment(waveforms, lengths, self.config.augment, generator, self.encoder.sample_rate)
        if self.encoder.normalize:
            waveforms = normalize_rows(waveforms, lengths)
        frames = self.encoder.frames(lengths)
        mask = draw_mask(frames, labels[0].shape[1], self.config.masking, generator)
        return waveforms, lengths, mask, labels

    def _speeds(self, seed: int) -> list[float]:
        speeds, host = self.config.augment.speeds, random.Random(seed)
        if len(speeds) == 1:
            return speeds
        return [host.choice(speeds) for _ in range(self.config.augment.speed_groups)]
