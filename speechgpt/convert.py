"""`speechgpt convert`: published files of other projects to one folder of ours, whole or as it was.

Several calls may fill one folder, part by part. With encoder, codebook, vocoder and language model in it, it
is a model directory that --model takes.
"""

import argparse
import os
import shutil
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from speechgpt.data.files import locked, read_json, write_json
from speechgpt.data.hub import named_path
from speechgpt.model_dir import MODEL_FILE, PUBLISHED_DECODING, ModelConfig, ModelDir
from speechgpt.originals import (
    CODEBOOK,
    CONVERTER,
    ENCODER,
    LLM,
    VOCODER,
    VOCODER_CONFIG,
    Original,
    identify,
    vocoder_config,
    write_codebook,
    write_encoder,
    write_vocoder,
)

RECORD_FILE = "convert.json"  # what the folder was converted from; written last
PARTS = (ENCODER, CODEBOOK, VOCODER, LLM)


def convert(
    paths: list[Path], out: Path, layer: int | None = None, encoder: Path | None = None
) -> tuple[list[str], list[str]]:
    """Converts the files into the folder `out`; returns (parts that are new, parts that it lacks).

    `layer`: of a k-means whose name does not say it. `encoder`: folder of the encoder that a k-means belongs
    to, where none is among the files or in `out`; it becomes part of the folder. What `out` already holds
    from the same files is left alone. Raises ValueError or FileNotFoundError, and then `out` is as it was.
    Calls with one `out` at the same time wait for each other.
    """
    groups = _grouped(paths, encoder)
    with locked(out):  # from reading the record to replacing the folder
        return _convert(groups, out, layer, encoder)


def _convert(
    groups: dict[str, list[Original]], out: Path, layer: int | None, encoder: Path | None
) -> tuple[list[str], list[str]]:
    from speechgpt.model import whole_folder

    record = _old_record(out)
    wanted = {kind: _sources(kind, group) for kind, group in groups.items()}
    if encoder is not None:
        wanted[ENCODER] = [{"folder": encoder.name, "fingerprint": _fingerprint(encoder)}]
    if layer is not None and CODEBOOK in wanted:
        wanted[CODEBOOK].append({"layer": layer})
    changed = [kind for kind in PARTS if kind in wanted and record.get(kind) != wanted[kind]]
    if ENCODER in changed and CODEBOOK in record and CODEBOOK not in changed:
        if CODEBOOK not in wanted:
            raise ValueError(f"{out}: its codebook belongs to the encoder in it; give its k-means file too")
        changed.append(CODEBOOK)
    if changed:
        with whole_folder(out) as folder:
            if out.is_dir():
                # Parts are only ever replaced, never written into: links save copying gigabytes.
                shutil.copytree(out, folder, dirs_exist_ok=True, copy_function=_link)
            for name in (MODEL_FILE, RECORD_FILE):
                (folder / name).unlink(missing_ok=True)
            for kind in changed:
                _write(kind, groups, ModelDir(folder, ModelConfig("new")), layer, encoder)
            record |= {kind: wanted[kind] for kind in changed}
            _finish(folder, out.name, record)
    return changed, [kind for kind in PARTS if kind not in record]


def _grouped(paths: list[Path], encoder: Path | None) -> dict[str, list[Original]]:
    """Files by part. Raises ValueError when two files claim one part."""
    groups: dict[str, list[Original]] = {}
    for path in dict.fromkeys(paths):
        found = identify(path)
        groups.setdefault(found.kind, []).append(found)
    for kind, group in groups.items():
        if kind != LLM and len(group) > 1:
            raise ValueError(f"{' and '.join(str(o.path) for o in group)}: each is a whole {kind}; give one")
    if encoder is not None and ENCODER in groups:
        raise ValueError(f"{groups[ENCODER][0].path} is an encoder, and so is --encoder {encoder}; give one")
    given = groups.pop(VOCODER_CONFIG, [None])[0]
    if VOCODER in groups:
        config = vocoder_config(groups[VOCODER][0], given)
        groups[VOCODER] += [config] if config else []
    elif given is not None:
        raise ValueError(f"{given.path}: a CodeHiFiGAN config; give the generator (g_00500000) too")
    return groups


def _sources(kind: str, group: list[Original]) -> list[dict[str, str]]:
    """Of every file that is read for a part: a LLaMA's shard or adapter brings files that were not named."""
    if kind == LLM:
        from speechgpt.llama_files import files_read

        group = [Original(path, kind) for path in files_read([original.path for original in group])]
    return [original.source() for original in group]


def _old_record(out: Path) -> dict:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return {}
    if not (out / RECORD_FILE).is_file():
        raise ValueError(f"{out}: is not empty and holds no conversion; give another --out")
    record = read_json(out / RECORD_FILE)
    if not isinstance(record, dict) or record.get("converter") != CONVERTER:
        raise ValueError(f"{out}: was converted by another version; remove it, or give another --out")
    return record["parts"]


def _fingerprint(folder: Path) -> str:
    from speechgpt.units.encoder import Encoder

    return Encoder.load(folder, "cpu").fingerprint


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _write(
    kind: str, groups: dict[str, list[Original]], target: ModelDir, layer: int | None, encoder: Path | None
) -> None:
    place = target.path / (target.codebook.name if kind == CODEBOOK else kind)
    if place.is_dir():
        shutil.rmtree(place)
    if kind == ENCODER and encoder is not None:
        from speechgpt.units.encoder import Encoder

        Encoder.load(encoder, "cpu").save(place)
    elif kind == ENCODER:
        write_encoder(groups[kind][0], place)
    elif kind == CODEBOOK:
        if not target.encoder.is_dir():
            raise ValueError(
                f"{groups[kind][0].path}: a codebook is nothing without its encoder; give the HuBERT "
                "checkpoint too, or --encoder FOLDER"
            )
        write_codebook(groups[kind][0], target.encoder, layer, place)
    elif kind == VOCODER:
        write_vocoder(groups[kind][0], groups[kind][1] if len(groups[kind]) > 1 else None, place)
    else:
        from speechgpt.llama_files import convert_llama

        convert_llama([original.path for original in groups[kind]], place)


def _finish(folder: Path, name: str, record: dict) -> None:
    """Checks that the parts fit, and writes speechgpt.json when there are all, and the record last."""
    from speechgpt.units.codebook import Codebook

    found = ModelDir(folder, ModelConfig("new"))
    codebook = Codebook.load(found.codebook) if CODEBOOK in record else None
    sizes = {CODEBOOK: codebook.size} if codebook else {}
    if VOCODER in record:
        sizes[VOCODER] = read_json(found.vocoder / "config.json")["num_units"]
    if LLM in record:
        from speechgpt.vocabulary import Vocabulary

        vocabulary = Vocabulary.load(found.llm)
        sizes[LLM] = vocabulary.num_units
    if len(set(sizes.values())) > 1:
        each = ", ".join(f"{kind} {size}" for kind, size in sizes.items())
        raise ValueError(f"the parts do not belong together: they have different numbers of units ({each})")
    _check_frames(found, record)
    if codebook and all(kind in record for kind in PARTS):
        published = vocabulary.profile == "upstream"
        from speechgpt.data.published import PREFIX

        config = ModelConfig(
            name,
            profile=vocabulary.profile,
            prefix=PREFIX if published else "",
            layer=codebook.provenance.layer,
            decoding=PUBLISHED_DECODING if published else {},
            provenance=record,
        )
        write_json(folder / MODEL_FILE, asdict(config))
    write_json(folder / RECORD_FILE, {"converter": CONVERTER, "parts": record})


def _check_frames(found: ModelDir, record: dict) -> None:
    """A frame must last as long for the encoder as for the vocoder."""
    if ENCODER not in record or VOCODER not in record:
        return
    from math import prod

    ours = prod(read_json(found.encoder / "config.json")["conv_stride"])
    rate = read_json(found.encoder / "encoder.json")["sample_rate"]
    vocoder = read_json(found.vocoder / "config.json")
    hop = prod(vocoder["upsample_rates"])
    if ours * vocoder["sample_rate"] != hop * rate:
        raise ValueError(
            f"the parts do not belong together: the encoder's frame is {ours} samples at {rate} Hz, the "
            f"vocoder's {hop} at {vocoder['sample_rate']} Hz"
        )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="speechgpt convert", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="in any order; told apart by what is in them")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write, or to add parts to")
    add("--layer", type=int, metavar="N", help="layer of the k-means' features, where its name has no _L11_")
    add("--encoder", type=named_path, metavar="FOLDER", help="encoder folder that the k-means belongs to")
    add("--verify", action="store_true", help="compare with fairseq, which must be installed")
    add("--audio", nargs="+", type=Path, default=[], metavar="WAV", help="recordings to --verify on too")
    args = parser.parse_args(argv)
    if args.audio and not args.verify:
        raise ValueError("--audio goes with --verify")
    if args.verify and find_spec("fairseq") is None:
        raise ValueError(
            "--verify compares with fairseq, which is not installed here; `make test PARITY=1` or "
            "`pip install 'speechgpt[fairseq]'` installs it"
        )
    changed, missing = convert(args.files, args.out, args.layer, args.encoder)
    print(f"{args.out}: {', '.join(changed) or 'nothing new, all was converted before'}")
    if missing:
        print(f"a whole model also needs {', '.join(missing)}: convert those to the same --out")
    else:
        print(f"a whole model: speechgpt talk question.wav --model {args.out}")
    if args.verify:
        from speechgpt.verify import verify

        return verify(args.files, args.out, args.audio)
    return 0
