"""One training step of the unit HiFi-GAN, as phases that run eagerly or as CUDA graphs: the same maths."""

from collections.abc import Callable
from dataclasses import fields

import torch
import torch.distributed as dist
from torch import Tensor, nn

from speechgpt.vocoder.generator import UnitVocoder
from speechgpt.vocoder.graphs import Phases
from speechgpt.vocoder.losses import (
    LogMel,
    adversarial_loss,
    discriminator_loss,
    duration_loss,
    mel_loss,
)
from speechgpt.vocoder.pool import Batch
from speechgpt.vocoder.settings import TrainConfig
from speechgpt.vocoder.training_generator import fast_generate
from speechgpt.vocoder.weight_norm import to_channels_last

REPLAY_TOLERANCE = 0.05  # of the mel loss of the same weights, between the plain model and a captured step
LOSS_NAMES = ("mel", "durations", "discriminator", "adversarial", "features", "generator_norm", "judge_norm")


class Steps:
    """Generator, discriminators and their optimizers; `warm` and `adversarial` do one step each on a batch.

    An update whose gradients are not finite is not made, nor any after it: `found_bad` holds 1 from then on,
    and `done` counts the steps before.
    """

    def __init__(self, model: UnitVocoder, judges: nn.Module, config: TrainConfig):
        self.model, self.judges, self.config = model.train(), judges.train(), config
        self.device = model.device
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        on_cuda = self.device.type == "cuda"
        if on_cuda and config.generator_channels_last:
            to_channels_last(model)
        self.mel = LogMel(model.sample_rate).to(self.device)
        self.generator_optimizer = self._optimizer(model)
        self.judge_optimizer = self._optimizer(judges)
        self.average = [p.detach().clone() for p in model.parameters()] if config.ema else []
        self.found_bad = torch.zeros((), device=self.device)
        self.done = torch.zeros((), device=self.device)
        self.total = torch.zeros((), device=self.device)  # the loss whose gradients come next
        self.losses = {name: torch.zeros((), device=self.device) for name in LOSS_NAMES}
        self.batch: Batch | None = None
        self.fake: Tensor | None = None
        self.generate = model.generate
        if on_cuda and config.compile:
            self.generate = torch.compile(model.generate, dynamic=False)
        capture, several = on_cuda and config.cuda_graphs, self.world > 1
        if capture and config.precision == "bf16" and not config.compile:
            self.generate = fast_generate(model)  # hundreds of launches: eager steps would wait for them
        self.warm_phases = Phases(
            [self._warm_backward, self._generator_update],
            capture,
            [self._sync_generator] if several else None,
        )
        self.adversarial_phases = Phases(
            [self._judge_backward, self._judge_update_generator_backward, self._generator_update],
            capture,
            [self._sync_judges, self._sync_generator] if several else None,
        )

    def _optimizer(self, module: nn.Module) -> torch.optim.AdamW:
        config, on_cuda = self.config, self.device.type == "cuda"
        # A captured step reads the learning rate from the device.
        rate = torch.tensor(config.learning_rate, device=self.device) if on_cuda else config.learning_rate
        return torch.optim.AdamW(
            module.parameters(),
            lr=rate,
            betas=tuple(config.betas),
            weight_decay=config.weight_decay,
            fused=True,
            capturable=on_cuda and config.cuda_graphs,
        )

    def warm(self, batch: Batch, rate: float) -> None:
        """A step on the mel and duration losses alone."""
        self._prepare(batch, rate)
        self._run(self.warm_phases)

    def adversarial(self, batch: Batch, rate: float) -> None:
        """A step of the discriminators, then one of the generator."""
        if self.warm_phases.captured:
            self.warm_phases.release()
        self._prepare(batch, rate)
        self._run(self.adversarial_phases)

    def _run(self, phases: Phases) -> None:
        """Runs the phases; the first replay of a captured step must find the loss that an eager one finds."""
        if not phases.captures_next:
            phases()
            return
        with torch.no_grad():
            # By the plain model: kernels that were made wrong would agree with themselves.
            plain = self._speak(self.model.generate)
            expected = mel_loss(self.mel(plain), self.mel(self.batch.audio)).item()
        phases()
        found = self.losses["mel"].item()
        if phases.captured and not abs(found - expected) <= REPLAY_TOLERANCE * abs(expected):
            raise ValueError(
                f"the captured step finds a mel loss of {found:.4g}, the plain model {expected:.4g}: "
                "set cuda_graphs: false, and go on from the last checkpoint"
            )

    def _prepare(self, batch: Batch, rate: float) -> None:
        """Copies the batch to where the captured step reads it, and sets the learning rates."""
        if self.batch is None:
            self.batch = batch
        for name in (f.name for f in fields(Batch)):
            target, source = getattr(self.batch, name), getattr(batch, name)
            if target is not source:
                target.copy_(source)
        for optimizer in (self.generator_optimizer, self.judge_optimizer):
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    def _autocast(self) -> torch.autocast:
        # Its cache of cast weights must not outlive a captured phase.
        on = self.config.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=on, cache_enabled=False)

    def _speak(self, generate: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The generator's waveform for the batch (B, T) float32, with its graph."""
        generate = generate or self.generate
        speaker = self.batch.speaker if self.model.config.num_speakers else None
        with self._autocast():
            return generate(self.model.embed(self.batch.frames, speaker)).squeeze(1).float()

    def _reconstruction(self, fake: Tensor) -> Tensor:
        """The weighted mel and duration losses."""
        weights, batch = self.config.loss, self.batch
        with torch.no_grad():
            real = self.mel(batch.audio)
        mel = mel_loss(self.mel(fake), real)
        self.losses["mel"].copy_(mel.detach())
        total = weights.mel * mel
        if self.model.dur_predictor is not None:
            speaker = batch.unit_speaker if self.model.config.num_speakers else None
            predicted = self.model.log_durations(batch.units, speaker, batch.unit_mask)
            durations = duration_loss(predicted, batch.durations, batch.loss_mask)
            self.losses["durations"].copy_(durations.detach())
            total = total + weights.durations * durations
        return total

    def _backward(self, loss: Tensor) -> None:
        self.total.copy_(loss.detach())
        loss.backward()

    def _warm_backward(self) -> None:
        self.generator_optimizer.zero_grad(set_to_none=True)
        self._backward(self._reconstruction(self._speak()))

    def _judge_backward(self) -> None:
        self.judge_optimizer.zero_grad(set_to_none=True)
        self.judges.requires_grad_(True)
        self.fake = self._speak()
        # Real and made sound in one batch: half the launches, and each weight norm once.
        both = torch.cat([self.batch.audio, self.fake.detach()]).unsqueeze(1)  # 2B 1 T
        with self._autocast():
            scores = self.judges.scores(both)
        half = len(self.batch.audio)
        loss = discriminator_loss([s[:half] for s in scores], [s[half:] for s in scores])
        self.losses["discriminator"].copy_(loss.detach())
        self._backward(loss)

    def _judge_update_generator_backward(self) -> None:
        self._update(self.judge_optimizer, "judge_norm")
        self.generator_optimizer.zero_grad(set_to_none=True)
        self.judges.requires_grad_(False)
        with self._autocast():
            scores, distance = self.judges.compare(self.fake.unsqueeze(1), self.batch.audio.unsqueeze(1))
        adversarial = adversarial_loss(scores)
        self.losses["adversarial"].copy_(adversarial.detach())
        self.losses["features"].copy_(distance.detach())
        weights = self.config.loss
        total = (
            self._reconstruction(self.fake) + weights.adversarial * adversarial + weights.features * distance
        )
        self._backward(total)
        self.fake = None

    def _generator_update(self) -> None:
        self._update(self.generator_optimizer, "generator_norm")
        if self.average:
            torch._foreach_lerp_(self.average, list(self.model.parameters()), 1 - self.config.ema)
        self.done.add_(1 - self.found_bad)

    def _update(self, optimizer: torch.optim.AdamW, name: str) -> None:
        """Updates, unless loss or gradients, now or before, were not finite: decided on the device."""
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.losses[name].copy_(norm)
        self.found_bad.copy_(torch.maximum(self.found_bad, (~torch.isfinite(norm + self.total)).float()))
        optimizer.found_inf = self.found_bad
        optimizer.step()

    def _sync_judges(self) -> None:
        self._sync(self.judges)

    def _sync_generator(self) -> None:
        self._sync(self.model)

    def _sync(self, module: nn.Module) -> None:
        """Averages the module's gradients, and the loss that they are of, over the processes."""
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        gradients.append(self.total)
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        parts = flat.split([g.numel() for g in gradients])
        torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])

    def check(self, step: int) -> None:
        """Raises ValueError naming the step when an update was refused; `step` counts those asked for."""
        if not self.found_bad.item():
            return
        shown = ", ".join(f"{name} {value:.3g}" for name, value in self.read().items())
        raise ValueError(
            f"step {int(self.done.item())}: the loss or its gradient is not finite ({shown}); no update "
            f"was made since (now at step {step}). Lower the learning rate or go back to the last checkpoint"
        )

    def read(self) -> dict[str, float]:
        """The last step's losses."""
        values = torch.stack(list(self.losses.values())).tolist()
        return dict(zip(self.losses, values, strict=True))

    def restart_average(self) -> None:
        """The average forgets what was before."""
        for average, weight in zip(self.average, self.model.parameters(), strict=False):
            average.copy_(weight.detach())

    def averaged_state(self) -> dict[str, Tensor]:
        """The generator's state dict, with the averaged weights where there are any."""
        state = self.model.state_dict()
        for (name, _), average in zip(self.model.named_parameters(), self.average, strict=False):
            state[name] = average
        return state

    def state_dict(self) -> dict:
        return {
            "generator": self.model.state_dict(),
            "discriminators": self.judges.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "judge_optimizer": self.judge_optimizer.state_dict(),
            "average": self.average,
            "done": self.done,
        }

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["generator"])
        self.judges.load_state_dict(state["discriminators"])
        for name in ("generator_optimizer", "judge_optimizer"):
            optimizer = getattr(self, name)
            mine = [(group["lr"], group["capturable"]) for group in optimizer.param_groups]
            optimizer.load_state_dict(state[name])
            # The run that was saved may have had another device, or no graphs.
            for group, (rate, capturable) in zip(optimizer.param_groups, mine, strict=True):
                group["lr"], group["capturable"] = rate, capturable
            _lay_out(optimizer)
        for mine, stored in zip(self.average, state["average"], strict=True):
            mine.copy_(stored)
        self.done.copy_(state["done"])


def _lay_out(optimizer: torch.optim.AdamW) -> None:
    """Gives averages their weights' memory layout, which a fused update supposes: the run may be older."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight.detach()).copy_(value)
