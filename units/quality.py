"""How good units are: purity and mutual information against phones, bitrate, and how many are used.

Further: how well the phones that units stand for on the train split fit held-out rows of each corpus, how far
apart two speakers' units of one text are, and with --ctc, the word error rate of a small recogniser that is
trained on the units alone.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from speechgpt.data.files import write_json
from speechgpt.data.rows import UnitRow, Utterance, read_manifest, read_units
from speechgpt.units.codebook import Codebook
from speechgpt.units.consistency import MAX_PAIRS, speaker_distances
from speechgpt.units.dedup import expand
from speechgpt.units.phones import PHONES, phone_labels

# What mHuBERT with 1000 units has on English: log2(1000) bits for each of about 33 units a second.
PUBLISHED_UNITS_PER_SECOND, PUBLISHED_BITS_PER_SECOND = 33.3, 332.0


@dataclass
class Quality:
    rows: int
    seconds: float
    frames: int
    phone_frames: int  # frames that have a phone; 0: the manifest has no phones, and the next four are NaN
    phone_purity: float  # chance to guess a frame's phone from its unit (Hsu et al. 2021, section IV.D)
    cluster_purity: float  # chance to guess a frame's unit from its phone
    pnmi: float  # I(phone; unit) / H(phone): the share of the phone's entropy that the unit tells
    phone_purity_speech: float  # phone purity without silence
    units_per_second: float  # deduplicated
    unit_entropy: float  # bits a deduplicated unit, from how often each is used
    bits_per_second: float  # entropy x units a second
    bits_per_second_fixed: float  # log2 K x units a second
    codebook_size: int
    used: int  # units that occur
    used_share: float
    mean_duration: float  # frames a unit


def joint_counts(
    rows: Iterable[tuple[UnitRow, Utterance]], k: int, hop: int, field: int, rate: int
) -> np.ndarray:
    """How often each phone (39 and silence, last) falls on each unit: (40, K) int64."""
    counts = np.zeros((len(PHONES) + 1, k), dtype=np.int64)
    for units, utterance in rows:
        if utterance.phones:
            frames = expand(units.units, units.durations)  # N
            phones = phone_labels(utterance.phones, len(frames), hop, field, rate, 1)  # N
            np.add.at(counts, (phones, frames), 1)
    return counts


def purities(counts: np.ndarray) -> tuple[float, float, float]:
    """Joint counts (phones, K) to phone purity, cluster purity and phone-normalised mutual information."""
    total = counts.sum()
    if total == 0:
        return math.nan, math.nan, math.nan
    joint = counts / total
    phone, unit = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
    seen = joint > 0
    information = float((joint[seen] * np.log(joint[seen] / (phone * unit)[seen])).sum())
    entropy = -float((phone[phone > 0] * np.log(phone[phone > 0])).sum())
    pnmi = information / entropy if entropy > 0 else math.nan
    return float(joint.max(0).sum()), float(joint.max(1).sum()), pnmi


def measure(
    units: list[UnitRow], manifest: list[Utterance], k: int, hop: int, field: int, rate: int
) -> Quality:
    """Unit rows against the manifest that they were made from, matched by id."""
    utterances = {row.id: row for row in manifest}
    if missing := [row.id for row in units if row.id not in utterances]:
        raise ValueError(f"{len(missing)} unit rows are not in the manifest, the first is {missing[0]}")
    if not units:
        raise ValueError("no unit rows to measure")
    if (largest := max(max(row.units, default=0) for row in units)) >= k:
        raise ValueError(f"unit {largest} is out of range: the codebook has {k}")
    counts = joint_counts(((row, utterances[row.id]) for row in units), k, hop, field, rate)
    phone_purity, cluster_purity, pnmi = purities(counts)
    used = np.bincount(np.concatenate([row.units for row in units]).astype(np.int64), minlength=k)
    share = used[used > 0] / used.sum()
    entropy = -float((share * np.log2(share)).sum())
    frames = sum(sum(row.durations) for row in units)
    seconds = sum(utterances[row.id].seconds for row in units)
    per_second = float(used.sum()) / seconds
    return Quality(
        len(units),
        round(seconds, 2),
        frames,
        int(counts.sum()),
        phone_purity,
        cluster_purity,
        pnmi,
        purities(counts[:-1])[0],
        per_second,
        entropy,
        entropy * per_second,
        math.log2(k) * per_second,
        k,
        int((used > 0).sum()),
        float((used > 0).mean()),
        frames / max(1, int(used.sum())),
    )


def by_corpus(
    units: list[UnitRow], manifest: list[Utterance], k: int, hop: int, field: int, rate: int
) -> dict[str, Quality]:
    corpora = sorted({row.corpus for row in units})
    return {c: measure([r for r in units if r.corpus == c], manifest, k, hop, field, rate) for c in corpora}


def phone_map_shares(
    units: list[UnitRow], manifest: list[Utterance], k: int, hop: int, field: int, rate: int
) -> dict[str, dict[str, dict]]:
    """Each unit stands for its most frequent phone on split train: the share of frames that this gets right.

    By corpus ("all" is all of them) and split; {} when no row of split train has phones. `speech` leaves the
    silence out of map and frames. A unit that split train has not is right nowhere.
    """
    utterances = {row.id: row for row in manifest}
    pairs: dict[tuple[str, str], list[tuple[UnitRow, Utterance]]] = defaultdict(list)
    for row in units:
        utterance = utterances.get(row.id)
        if utterance and utterance.phones:
            pairs[row.corpus, row.split].append((row, utterance))
    counts = {key: joint_counts(rows, k, hop, field, rate) for key, rows in sorted(pairs.items())}
    for corpus, split in list(counts):
        counts["all", split] = counts.get(("all", split), 0) + counts[corpus, split]
    if ("all", "train") not in counts:
        return {}
    learnt = counts["all", "train"]  # phones K
    found: dict[str, dict[str, dict]] = {}
    for (corpus, split), table in sorted(counts.items()):
        found.setdefault(corpus, {})[split] = {
            "frames": int(table.sum()),
            "right": _right(learnt, table),
            "speech_frames": int(table[:-1].sum()),
            "speech_right": _right(learnt[:-1], table[:-1]),
        }
    return found


def _right(learnt: np.ndarray, counts: np.ndarray) -> float | None:
    """Counts (phones, K) to the share that each unit's most frequent phone in `learnt` gets right."""
    if not counts.sum():
        return None
    hits = np.take_along_axis(counts, learnt.argmax(0)[None], axis=0)[0]  # K
    return float(hits[learnt.any(0)].sum() / counts.sum())


def plain(quality: Quality) -> dict:
    """For JSON, which has no NaN."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(quality).items()
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="speechgpt unit-quality", description=__doc__)
    parser.add_argument("--units", required=True, help="units.jsonl")
    parser.add_argument(
        "--manifest", required=True, help="the manifest that was encoded; phones where it has them"
    )
    parser.add_argument("--codebook", required=True, help="codebook.safetensors: K and the frame rate")
    parser.add_argument("--out", required=True, help="a JSON file")
    parser.add_argument(
        "--split", help="only rows of this split; phones of units and the recogniser are learnt from train"
    )
    parser.add_argument(
        "--receptive-field", type=int, help="samples that one frame sees (default: the codebook's)"
    )
    parser.add_argument("--max-pairs", type=int, default=MAX_PAIRS, help="of one text, a pair of corpora")
    parser.add_argument("--ctc", action="store_true", help="train a small recogniser on the units: its WER")
    parser.add_argument("--ctc-steps", type=int, default=4000, help="of its training")
    parser.add_argument(
        "--ctc-minutes", type=float, help="end its training by then; steps as --ctc-steps says"
    )
    parser.add_argument("--device", default="auto", help="of the recogniser: auto, cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs and the recogniser")
    options = parser.parse_args(argv)
    codebook = Codebook.load(options.codebook)
    manifest = read_manifest(options.manifest)
    every = units = read_units(options.units)
    if options.split:
        units = [row for row in every if row.split == options.split]
    settings = (
        codebook.size,
        codebook.provenance.hop,
        options.receptive_field or codebook.provenance.receptive_field,
        codebook.provenance.sample_rate,
    )
    whole = measure(units, manifest, *settings)
    parts = by_corpus(units, manifest, *settings)
    result = plain(whole) | {"corpora": {name: plain(quality) for name, quality in parts.items()}}
    result["phone_map"] = phone_map_shares(every, manifest, *settings)
    result["speakers"] = speaker_distances(units, options.max_pairs, options.seed)
    if options.ctc:
        from speechgpt.units.ctc_probe import ProbeConfig, word_error_rates

        config = ProbeConfig(options.ctc_steps, options.ctc_minutes, seed=options.seed)
        result["ctc"] = word_error_rates(every, codebook.size, config, options.device)
    write_json(Path(options.out), result)
    known = (
        "" if math.isnan(whole.pnmi) else f", PNMI {whole.pnmi:.3f}, phone purity {whole.phone_purity:.3f}"
    )
    print(
        f"{options.out}: {whole.units_per_second:.1f} units/s, {whole.bits_per_second:.0f} bit/s, "
        f"{whole.used} of {whole.codebook_size} units used{known}"
    )
    for line in told(result):
        print(line)
    return 0


def told(result: dict) -> list[str]:
    """What is there beside the first figures, a line each."""

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{100 * share:.1f} %"

    lines = []
    for corpus, splits in result["phone_map"].items():
        shares = (
            f"{s} {percent(v['right'])} (speech {percent(v['speech_right'])})" for s, v in splits.items()
        )
        lines.append(f"frames whose unit stands for their phone, {corpus}: {', '.join(shares)}")
    for name, found in result["speakers"].items():
        if found["pairs"]:
            share, name = percent(found["distance"]), name.replace("_", " ")
            lines.append(f"units that differ, {name}: {share} ({found['pairs']} pairs)")
    ctc = result.get("ctc", {})
    for corpus, splits in {"all": ctc.get("all", {}), **ctc.get("corpora", {})}.items():
        rates = (f"{s} WER {percent(v['wer'])}, CER {percent(v['cer'])}" for s, v in splits.items())
        if splits:
            lines.append(f"heard from units alone, {corpus}: {'; '.join(rates)}")
    return lines
