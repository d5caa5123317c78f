"""The unit HiFi-GAN: codebook units, one a frame, to a waveform.

Our own code for the published plan (CodeHiFiGAN): an embedding a unit, an optional speaker vector beside
every frame, transposed convolutions that upsample, and after each a sum of dilated residual blocks. Module
names follow the published checkpoints, so that converting one is a matter of names.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from speechgpt.data.files import atomic_path, read_json, write_json
from speechgpt.units.devices import choose_device
from speechgpt.vocoder.architecture import EDGE_KERNEL, VocoderConfig
from speechgpt.vocoder.durations import DurationPredictor, frames_from_log
from speechgpt.vocoder.weight_norm import WeightNorm

SLOPE = 0.1  # of the leaky ReLUs
LAST_SLOPE = 0.01  # of the one before the last convolution, as published
INIT_STD = 0.01  # of the convolutions' weights, as published
FORMAT = 1  # of the folder that `save` writes


class Lengths:
    """True lengths of the rows of a padded batch; zeroes what lies beyond, at any upsampling rate."""

    def __init__(self, mask: Tensor):
        self.frames = mask.sum(1)  # B
        self.list = self.frames.tolist()

    def clip(self, x: Tensor, rate: int) -> Tensor:
        """x (B, C, N * rate): zeroes every row after its true length; in place without gradients."""
        if torch.is_grad_enabled():
            position = torch.arange(x.shape[-1], device=x.device)
            return x * (position < self.frames[:, None, None] * rate).to(x.dtype)  # B C T
        for row, frames in enumerate(self.list):
            x[row, :, frames * rate :] = 0
        return x


class ResBlock(nn.Module):
    """Residual pairs of convolutions, the first of each pair dilated."""

    def __init__(self, channels: int, kernel: int, dilations: list[int]):
        super().__init__()

        def conv(dilation: int) -> nn.Conv1d:
            return nn.Conv1d(
                channels, channels, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2
            )

        self.convs1 = nn.ModuleList(conv(d) for d in dilations)
        self.convs2 = nn.ModuleList(conv(1) for _ in dilations)

    def forward(self, x: Tensor, lengths: Lengths | None, rate: int) -> Tensor:
        """x (B, C, T) -> (B, C, T)."""
        for conv1, conv2 in zip(self.convs1, self.convs2, strict=True):
            y = conv1(F.leaky_relu(x, SLOPE))
            y = y if lengths is None else lengths.clip(y, rate)
            y = conv2(F.leaky_relu(y, SLOPE))
            y = y if lengths is None else lengths.clip(y, rate)
            x = x + y
        return x


class UnitVocoder(nn.Module):
    """Units to a waveform, and units to durations."""

    def __init__(self, config: VocoderConfig):
        super().__init__()
        if config.num_units < 1:
            raise ValueError(f"vocoder config: num_units is {config.num_units}, expected the codebook's size")
        config.check()
        self.config = config
        speaker_width = config.speaker_dim if config.has_speaker else 0
        self.dict = nn.Embedding(config.num_units, config.embedding_dim)
        self.spkr: nn.Module | None = None
        if config.num_speakers:
            self.spkr = nn.Embedding(config.num_speakers, config.speaker_dim)
        elif config.speaker_vector_dim:
            self.spkr = nn.Linear(config.speaker_vector_dim, config.speaker_dim)
        self.dur_predictor = None
        if config.duration_predictor:
            width = config.embedding_dim + (speaker_width if config.duration_speaker else 0)
            self.dur_predictor = DurationPredictor(
                width, config.duration_width, config.duration_kernel, config.duration_dropout
            )
        self._build_generator(config.embedding_dim + speaker_width)

    def _build_generator(self, input_width: int) -> None:
        config = self.config
        channels = config.initial_channels
        self.conv_pre = nn.Conv1d(input_width, channels, EDGE_KERNEL, padding=EDGE_KERNEL // 2)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernels, strict=True):
            self.ups.append(
                nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2)
            )
            channels //= 2
            for k, dilations in zip(config.resblock_kernels, config.resblock_dilations, strict=True):
                self.resblocks.append(ResBlock(channels, k, dilations))
        self.conv_post = nn.Conv1d(channels, 1, EDGE_KERNEL, padding=EDGE_KERNEL // 2)
        for conv in self._convolutions():
            if conv is not self.conv_pre:
                nn.init.normal_(conv.weight, std=INIT_STD)

    def _convolutions(self) -> list[nn.Module]:
        """The generator's convolutions: those that train under weight norm."""
        inner = [m for m in self.resblocks.modules() if isinstance(m, nn.Conv1d)]
        return [self.conv_pre, *self.ups, *inner, self.conv_post]

    @property
    def hop(self) -> int:
        return self.config.hop

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def device(self) -> torch.device:
        return self.dict.weight.device

    def add_weight_norm(self) -> "UnitVocoder":
        """For training; `remove_weight_norm` folds it back into plain weights."""
        for conv in self._convolutions():
            parametrize.register_parametrization(conv, "weight", WeightNorm())
        return self

    def remove_weight_norm(self) -> "UnitVocoder":
        for conv in self._convolutions():
            if parametrize.is_parametrized(conv, "weight"):
                parametrize.remove_parametrizations(conv, "weight")
        return self

    def speaker_features(self, speaker: Tensor | None, batch: int) -> Tensor | None:
        """speaker: (B,) int64 rows of the table, or (B, V) float vectors; returns (B, D) or None."""
        if self.spkr is None:
            if speaker is not None:
                raise ValueError("a speaker was given, but this vocoder has one voice")
            return None
        if speaker is None:
            raise ValueError("this vocoder has several voices: a speaker is needed")
        if speaker.shape[0] != batch:
            raise ValueError(f"{speaker.shape[0]} speakers for a batch of {batch}")
        return self.spkr(speaker)  # B D

    def forward(self, frames: Tensor, speaker: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """frames (B, N) int64, one unit a frame; mask (B, N) bool, True where a frame is (None: everywhere).

        Returns the waveform (B, N * hop) in [-1, 1], zero beyond a row's true length; a padded row equals
        the same row alone.
        """
        x = self.embed(frames, speaker)  # B D N
        lengths = None if mask is None or bool(mask.all()) else Lengths(mask)
        x = x if lengths is None else lengths.clip(x.contiguous(), 1)
        return self.generate(x, lengths).squeeze(1)  # B N*hop

    def embed(self, frames: Tensor, speaker: Tensor | None = None) -> Tensor:
        """frames (B, N) to what the convolutions see: the units' rows, the speaker's beside (B, D, N)."""
        x = self.dict(frames).transpose(1, 2)  # B D N
        features = self.speaker_features(speaker, frames.shape[0])
        if features is None:
            return x
        return torch.cat([x, features.unsqueeze(-1).expand(-1, -1, x.shape[-1])], dim=1)  # B 2D N

    def generate(self, x: Tensor, lengths: Lengths | None = None) -> Tensor:
        """x (B, D, N) embedded frames with the speaker beside them -> (B, 1, N * hop)."""

        def clip(x: Tensor, rate: int) -> Tensor:
            return x if lengths is None else lengths.clip(x, rate)

        rate, blocks = 1, len(self.config.resblock_kernels)
        x = clip(self.conv_pre(x), rate)  # B C N
        for stage, up in enumerate(self.ups):
            rate *= self.config.upsample_rates[stage]
            x = clip(up(F.leaky_relu(x, SLOPE)), rate)  # B C N*rate
            total = self.resblocks[stage * blocks](x, lengths, rate)
            for block in self.resblocks[stage * blocks + 1 : (stage + 1) * blocks]:
                total = total + block(x, lengths, rate)
            x = total / blocks
        # Samples in bf16 would carry noise 50 dB down, which the log-mel loss hears: no autocast here.
        with torch.autocast(x.device.type, enabled=False):
            x = F.leaky_relu(x.to(self.conv_post.weight.dtype), LAST_SLOPE)
            x = torch.tanh(self.conv_post(x))  # B 1 N*hop
        return clip(x, rate)

    def log_durations(
        self, units: Tensor, speaker: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """units (B, U) int64, deduplicated; mask (B, U) bool; returns log(1 + frames) (B, U)."""
        if self.dur_predictor is None:
            raise ValueError("this vocoder has no duration predictor: give the durations")
        x = self.dict(units)  # B U D
        if self.config.duration_speaker and self.config.has_speaker:
            features = self.speaker_features(speaker, units.shape[0])
            x = torch.cat([x, features.unsqueeze(1).expand(-1, x.shape[1], -1)], dim=-1)  # B U 2D
        return self.dur_predictor(x, mask)

    def durations(
        self, units: Tensor, speaker: Tensor | None = None, mask: Tensor | None = None, scale: float = 1.0
    ) -> Tensor:
        """Whole frames (B, U) int64, at least 1 (also where the mask is False: ignore those)."""
        return frames_from_log(self.log_durations(units, speaker, mask), scale)

    def save(self, folder: str | Path, half: bool = False) -> None:
        """Writes config.json and model.safetensors (weight norm folded; float16 with `half`), atomically."""
        from safetensors.torch import save

        folder = Path(folder)
        tensors = {k: v.half() if half else v for k, v in self.folded_state().items()}
        with atomic_path(folder / "model.safetensors") as part:
            part.write_bytes(save(tensors, metadata={"format": "pt"}))
        write_json(folder / "config.json", {"format": FORMAT, **asdict(self.config)})

    def folded_state(self) -> dict[str, Tensor]:
        """The state with plain weights, on the CPU, contiguous, float32; the module stays as it is."""
        state = {k: v for k, v in self.state_dict().items() if ".parametrizations." not in k}
        for name, module in self.named_modules():
            if parametrize.is_parametrized(module, "weight"):
                state[f"{name}.weight"] = module.weight
        return {k: v.detach().float().cpu().contiguous() for k, v in state.items()}

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> "UnitVocoder":
        """The vocoder that `save` wrote, in float32, in evaluation mode."""
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name}: no such file; expected a vocoder folder")
        values = read_json(folder / "config.json")
        if values.pop("format", None) != FORMAT:
            raise ValueError(f"{folder / 'config.json'}: expected a vocoder of format {FORMAT}")
        config = VocoderConfig.from_dict(values, str(folder / "config.json"))
        model = cls(config)
        state = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            where = folder / "model.safetensors"
            raise ValueError(
                f"{where}: does not fit config.json ({' '.join(str(error).split())[:300]})"
            ) from error
        return model.to(choose_device(device)).eval()
