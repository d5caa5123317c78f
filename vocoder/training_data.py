"""What one training of the vocoder is about: the generator's config, once codebook and speakers are known,
and the utterances on the device."""

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import torch

from speechgpt.data.hashes import file_hash
from speechgpt.units.codebook import Codebook
from speechgpt.vocoder.generator import VocoderConfig
from speechgpt.vocoder.pool import Pool, load_rows, read_rows
from speechgpt.vocoder.settings import TrainConfig


def resolve_generator(
    config: TrainConfig, speakers: list[str], codebook: str | Path | None, where: str | Path
) -> VocoderConfig:
    """The generator's config once codebook and speakers are known; ValueError names what does not fit."""
    plan = replace(config.generator)
    if codebook is not None:
        book = Codebook.load(codebook)
        for name, theirs in (("hop", book.provenance.hop), ("sample_rate", book.provenance.sample_rate)):
            if theirs != getattr(plan, name):
                raise ValueError(f"{codebook}: {name} {theirs}, but the vocoder's is {getattr(plan, name)}")
        if plan.num_units not in (0, book.size):
            raise ValueError(f"{codebook}: K = {book.size}, but generator.num_units is {plan.num_units}")
        plan.num_units = book.size
        plan.codebook = {"K": book.size, "sha256": file_hash(codebook), **asdict(book.provenance)}
    if plan.num_units == 0:
        raise ValueError("generator.num_units is 0: give --codebook, or the codebook's size in the config")
    if config.multi_speaker:
        plan.num_speakers, plan.speakers = len(speakers), speakers
        plan.default_speaker = plan.default_speaker or speakers[0]
    elif len(speakers) > 1:
        shown = ", ".join(speakers[:5]) + (", ..." if len(speakers) > 5 else "")
        raise ValueError(
            f"{where}: {len(speakers)} speakers ({shown}) for a vocoder of one voice: set multi_speaker: "
            "true, or name one in data.speakers"
        )
    plan.training = {"target_dbfs": config.data.target_dbfs, "config": config.fingerprint()}
    plan.check()
    return plan


def load_pool(
    config: TrainConfig,
    manifest: str | Path,
    units: str | Path,
    codebook: str | Path | None,
    device: torch.device,
) -> tuple[VocoderConfig, Pool]:
    """The generator's config and the training data on the device."""
    pairs = read_rows(manifest, units, config.data, config.data.splits)
    if not pairs:
        raise ValueError(f"{units}: no row of split {', '.join(config.data.splits)} and the wanted speakers")
    frames: Counter = Counter()
    for _, row in pairs:
        frames[row.speaker] += sum(row.durations)
    speakers = sorted(frames)
    plan = resolve_generator(config, speakers, codebook, manifest)
    if config.multi_speaker and not config.generator.default_speaker:
        plan.default_speaker = max(speakers, key=frames.__getitem__)  # the one with the most to learn from
    for _, row in pairs:
        if min(row.units) < 0 or max(row.units) >= plan.num_units:
            raise ValueError(
                f"{units}: row {row.id} holds unit {max(row.units)}; the codebook has K = {plan.num_units}"
            )
    rows = load_rows(pairs, manifest, plan.hop, plan.sample_rate, config.data)
    pool = Pool(rows, plan.hop, speakers, device, plan.sample_rate)
    pool.weigh(config.data)
    return plan, pool
