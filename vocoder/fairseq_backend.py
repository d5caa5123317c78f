"""fairseq's own CodeHiFiGAN behind our words: the judge of converted vocoders, `decode --backend fairseq`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechgpt.data.files import read_json, write_json
from speechgpt.units.devices import choose_device
from speechgpt.units.fairseq_backend import import_fairseq, quiet, reading
from speechgpt.units.precision import exact_convolutions
from speechgpt.vocoder.generator import UnitVocoder


class FairseqVocoder:
    """A CodeHiFiGAN as fairseq loads and runs it, one row at a time; speaks what `Synthesizer` speaks."""

    sample_rate = 16_000  # Hz, as fairseq's VocoderHubInterface has it
    speakers: Sequence[str] = ()  # fairseq knows no names

    def __init__(self, model: torch.nn.Module, config: dict) -> None:
        self.model, self.config = model.eval(), config

    @classmethod
    def load(
        cls, checkpoint: str | Path, config: str | Path, device: str | torch.device = "auto"
    ) -> "FairseqVocoder":
        """`checkpoint`: g_00500000 or the like; `config`: its config.json."""
        for path, what in ((checkpoint, "a CodeHiFiGAN generator"), (config, "its config.json")):
            if not Path(path).is_file():
                raise FileNotFoundError(f"{path}: no such file; expected {what}")
        values = read_json(config)
        import_fairseq()
        with quiet(), reading(Path(checkpoint)):
            from fairseq.models.text_to_speech.vocoder import CodeHiFiGANVocoder

            vocoder = CodeHiFiGANVocoder(str(checkpoint), values)
        return cls(vocoder.to(choose_device(device)), values)

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return int(np.prod(self.config["upsample_rates"]))

    @property
    def predicts(self) -> bool:
        """Whether it has a duration predictor."""
        return self.model.model.dur_predictor is not None

    @torch.inference_mode()
    def log_durations(self, units: Sequence[int]) -> Tensor:
        """Units (U,) to log(1 + frames) (U,), what fairseq rounds."""
        if not self.predicts:
            raise ValueError("this vocoder has no duration predictor: give the durations")
        generator = self.model.model
        return generator.dur_predictor(generator.dict(self._codes(units)))[0].cpu()

    def durations(self, units: Sequence[Sequence[int]], *_: object) -> list[np.ndarray]:
        """Predicted frames of every unit, by fairseq's rule: one (U,) int64 a row."""
        log = [self.log_durations(row) for row in units]
        return [torch.round(torch.exp(x) - 1).long().clamp(min=1).cpu().numpy() for x in log]

    @torch.inference_mode()
    def synthesize(
        self,
        units: Sequence[Sequence[int]],
        durations: Sequence[Sequence[int]] | None = None,
        speaker: int | np.ndarray | None = None,
        duration_scale: float = 1.0,
    ) -> list[np.ndarray]:
        """One waveform (T,) float32 a row of deduplicated `units`; durations in frames, predicted when None.

        `speaker`: a row of the table, 0 when None, or a vector (V,).
        """
        if duration_scale != 1.0:
            raise ValueError("fairseq's vocoder has no duration_scale; leave --backend fairseq out")
        found = []
        for number, row in enumerate(units):
            if durations is None and not self.predicts:
                raise ValueError("this vocoder has no duration predictor: give the durations")
            frames = row if durations is None else np.repeat(row, durations[number])
            inputs = {"code": self._codes(frames)} | self._speaker(speaker)
            with exact_convolutions():
                sound = self.model(inputs, durations is None)
            found.append(sound.float().cpu().numpy().reshape(-1))
        return found

    def _codes(self, units: Sequence[int]) -> Tensor:
        """Units (U,) as fairseq wants them (1, U)."""
        found, size = np.asarray(units, dtype=np.int64), int(self.config["num_embeddings"])
        if not len(found) or found.min() < 0 or found.max() >= size:
            raise ValueError(f"expected units from 0 to {size - 1}, at least one")
        return torch.from_numpy(found)[None].to(self._device)

    def _speaker(self, speaker: int | np.ndarray | None) -> dict[str, Tensor]:
        table = self.model.model
        if not table.multispkr:
            if speaker not in (None, 0):
                raise ValueError(f"speaker {speaker!r} was asked for, but this vocoder has one voice")
            return {}
        if isinstance(table.spkr, torch.nn.Embedding):
            if isinstance(speaker, str) or not 0 <= (speaker or 0) < table.spkr.num_embeddings:
                raise ValueError(
                    f"speaker {speaker!r}: fairseq's vocoder has voices 0 to {table.spkr.num_embeddings - 1}"
                )
            return {"spkr": torch.tensor([[speaker or 0]], device=self._device)}
        vector = np.asarray([] if speaker is None else speaker, dtype=np.float32)
        if vector.shape != (table.spkr.in_features,):
            raise ValueError(f"this vocoder needs a speaker vector of {table.spkr.in_features} numbers")
        return {"spkr": torch.from_numpy(vector)[None, None].to(self._device)}  # 1 1 V

    @property
    def _device(self) -> torch.device:
        return self.model.model.dict.weight.device


def codehifigan_files(model: UnitVocoder, folder: Path) -> tuple[Path, Path]:
    """Writes a vocoder of one voice as fairseq has it, for a comparison: (checkpoint, config.json)."""
    config = model.config
    state = {}
    for name, weight in model.folded_state().items():
        stem = name.removesuffix(".weight")
        if weight.dim() == 3 and not stem.startswith("dur_predictor"):
            norm = weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.dim() - 1))
            state |= {f"{stem}.weight_g": norm, f"{stem}.weight_v": weight}
        else:
            state[name] = weight
    torch.save({"generator": state}, folder / "g_00500000")
    write_json(
        folder / "config.json",
        {
            "resblock": "1",
            "upsample_rates": config.upsample_rates,
            "upsample_kernel_sizes": config.upsample_kernels,
            "upsample_initial_channel": config.initial_channels,
            "resblock_kernel_sizes": config.resblock_kernels,
            "resblock_dilation_sizes": config.resblock_dilations,
            "num_embeddings": config.num_units,
            "embedding_dim": config.embedding_dim,
            "model_in_dim": config.embedding_dim,
            "code_hop_size": config.hop,
            "sampling_rate": config.sample_rate,
            "multispkr": None,
            "f0": False,
            "dur_predictor_params": {
                "encoder_embed_dim": config.embedding_dim,
                "var_pred_hidden_dim": config.duration_width,
                "var_pred_kernel_size": config.duration_kernel,
                "var_pred_dropout": config.duration_dropout,
            },
        },
    )
    return folder / "g_00500000", folder / "config.json"
