"""Foreign checkpoints become plain values, and nothing that a crafted one says is ever done."""

import argparse
import bz2
import gzip
import io
import lzma
import os
import pickle
import pickletools
import struct
import tracemalloc
import zipfile
import zlib
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch

from speechgpt.data.inert import Inert, read_inert
from speechgpt.data.inert_arrays import storage_id

from ..foreign_files import passing_classes

TENSOR = torch.arange(24).float().reshape(4, 6)
LEGACY = {"_use_new_zipfile_serialization": False}


@pytest.fixture
def tree() -> dict:
    return {
        "whole": TENSOR,
        "turned": TENSOR.t(),
        "part": TENSOR[1:3, 2:],
        "half": TENSOR.half(),
        "double": TENSOR.double(),
        "long": TENSOR.long(),
        "bool": TENSOR > 3,
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3.5),
        "parameter": torch.nn.Parameter(TENSOR),
        "bfloat16": TENSOR.bfloat16(),
    }


@pytest.mark.parametrize("options", [{}, LEGACY, {"pickle_protocol": 4}, {**LEGACY, "pickle_protocol": 5}])
def test_tensors_of_torch_files(tree, tmp_path, options):
    torch.save(tree, tmp_path / "x.pt", **options)
    found = read_inert(tmp_path / "x.pt")
    assert found.keys() == tree.keys()
    for name, tensor in tree.items():
        expected = tensor.detach().float() if name == "bfloat16" else tensor.detach()
        assert found[name].dtype == expected.numpy().dtype, name
        assert np.array_equal(found[name], expected.numpy()) and found[name].shape == tensor.shape, name
    bits = read_inert(tmp_path / "x.pt", bits=True)["bfloat16"]
    assert bits.dtype == np.uint16 and np.array_equal(bits, tree["bfloat16"].view(torch.uint16).numpy())


@pytest.mark.parametrize("options", [{}, LEGACY])
def test_tensors_of_one_storage_share_the_file(tmp_path, options):
    torch.save({"a": TENSOR, "b": TENSOR[1:]}, tmp_path / "x.pt", **options)
    found = read_inert(tmp_path / "x.pt")
    assert np.shares_memory(found["a"], found["b"]) and not found["a"].flags.writeable


@pytest.mark.parametrize("protocol", range(6))
def test_containers_numbers_and_arrays(tmp_path, protocol):
    values = {
        "namespace": argparse.Namespace(rate=16_000, name="x"),
        "ordered": OrderedDict([("z", [1, (2, 3)]), ("y", None)]),
        "default": defaultdict(list, a=[1]),
        "counter": Counter("aab"),
        "set": {7},
        "bytes": b"\x00\xff",
        "array": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "number": np.float32(2.5),
        "large": 1 << 80,
        "text": np.array(["ab", "c"]),
    }
    (tmp_path / "x").write_bytes(pickle.dumps(values, protocol=protocol))
    found = read_inert(tmp_path / "x")
    assert found["namespace"] == {"rate": 16_000, "name": "x"}
    assert found["ordered"] == {"z": [1, (2, 3)], "y": None} and found["default"] == {"a": [1]}
    assert found["counter"] == {"a": 2, "b": 1} and found["set"] == [7] and found["bytes"] == b"\x00\xff"
    assert found["number"] == 2.5 and found["large"] == 1 << 80
    for name in ("array", "fortran", "big", "text"):
        assert np.array_equal(found[name], values[name]), name


@pytest.mark.parametrize("compress", [0, 3, *((name, 3) for name in ("zlib", "gzip", "bz2", "lzma", "xz"))])
def test_joblib_arrays(tmp_path, compress):
    values = {"a": np.arange(12.0).reshape(3, 4), "f": np.asfortranarray(np.ones((2, 3), "f4")), "n": 1}
    joblib.dump(values, tmp_path / "x", compress=compress)
    found = read_inert(tmp_path / "x")
    assert np.array_equal(found["a"], values["a"]) and np.array_equal(found["f"], values["f"])
    assert found["n"] == 1


def test_joblib_arrays_without_alignment_and_with_objects(tmp_path, monkeypatch):
    values = [np.arange(5.0), np.array([{"a": 1}, "b"], dtype=object), 4]
    joblib.dump(values, tmp_path / "new")
    found = read_inert(tmp_path / "new")
    assert np.array_equal(found[0], values[0]) and found[1] == [{"a": 1}, "b"] and found[2] == 4
    wrapper = joblib.numpy_pickle.NumpyArrayWrapper

    def old(self, *args, **options):  # joblib before 1.2 had no such attribute
        made(self, *args, **options)
        del self.numpy_array_alignment_bytes

    made = wrapper.__init__
    monkeypatch.setattr(wrapper, "__init__", old)
    monkeypatch.setattr(wrapper, "safe_get_numpy_array_alignment_bytes", lambda self: None)
    joblib.dump(values[0], tmp_path / "old")
    assert np.array_equal(read_inert(tmp_path / "old"), values[0])


@pytest.mark.parametrize("protocol", [1, 2, 4])
def test_classes_that_are_gone_become_records(tmp_path, protocol):
    with passing_classes("gone.models.Thing") as classes:
        thing = classes["gone.models.Thing"]()
        thing.array, thing.me = np.arange(3), thing
        (tmp_path / "x").write_bytes(pickle.dumps({"thing": thing, "kind": type(thing)}, protocol=protocol))
    found = read_inert(tmp_path / "x")
    thing = found["thing"]
    assert isinstance(thing, Inert) and (thing.module, thing.name) == ("gone.models", "Thing")
    assert np.array_equal(thing.state["array"], np.arange(3)) and thing.state["me"] is thing
    assert found["kind"].args is None and repr(thing) == "<inert gone.models.Thing>"
    assert not callable(thing) and not hasattr(thing, "array")


@pytest.mark.parametrize("options", [{}, LEGACY])
def test_what_nobody_looks_at_is_never_read(tmp_path, options):
    """An optimizer's state is twice the size of its model."""
    torch.save({"model": TENSOR, "optimizer": torch.zeros(8 << 20)}, tmp_path / "x.pt", **options)
    read_inert(tmp_path / "x.pt")  # imports and caches are no part of it
    tracemalloc.start()
    found = read_inert(tmp_path / "x.pt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["optimizer"].nbytes == 32 << 20 and peak < 1 << 20


# ---- what a crafted file may not do
class Runs:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def refused(path: Path, content: bytes | None = None, **options) -> str:
    """The one ValueError that the file must end in; it names the file."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_inert(path, **options)
    assert str(error.value).startswith(f"{path}: ") and len(str(error.value)) < 500
    return str(error.value)


@pytest.mark.parametrize("function", [os.system, eval, exec, os.mkdir], ids=lambda f: f.__name__)
def test_calls_are_recorded_and_never_made(tmp_path, function):
    target = tmp_path / "proof"
    argument = {os.system: f"touch {target}", os.mkdir: str(target)}.get(
        function, f"open({str(target)!r}, 'w')"
    )
    for protocol in range(5):
        content = pickle.dumps({"x": Runs(function, argument)}, protocol=protocol)
        (tmp_path / "x").write_bytes(content)
        found = read_inert(tmp_path / "x")["x"]
        assert isinstance(found, Inert) and found.args == (argument,) and not target.exists()
    torch.save({"x": Runs(function, argument)}, tmp_path / "x")
    assert isinstance(read_inert(tmp_path / "x")["x"], Inert) and not target.exists()


def test_chains_of_calls_and_dotted_names_lead_nowhere(tmp_path):
    target = tmp_path / "proof"
    chain = (
        b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93\x8c\x02os\x8c\x06system\x93\x8c\x08__call__\x86R"
        + b"\x8c"
        + bytes([len(f"touch {target}")])
        + f"touch {target}".encode()
        + b"\x85R."
    )
    (tmp_path / "x").write_bytes(chain)
    assert isinstance(read_inert(tmp_path / "x"), Inert) and not target.exists()
    dotted = b"\x80\x04\x8c\x08builtins\x8c\x10__import__.x.y.z\x93\x8c\x02os\x85R."
    (tmp_path / "x").write_bytes(dotted)
    found = read_inert(tmp_path / "x")
    assert isinstance(found, Inert) and found.name == "__import__.x.y.z"
    state = b"\x80\x04\x8c\x08builtins\x8c\x04dict\x93)R}\x8c\x09__class__K\x01sb."  # BUILD on a record
    (tmp_path / "x").write_bytes(state)
    assert read_inert(tmp_path / "x").state == {"__class__": 1}


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"\x80\x04K\x01K\x02\x85R.", "calls a int"),
        (b"\x80\x04]K\x01b.", "sets the state of a list"),
        (b"\x80\x04K\x01K\x02a.", "appends to a int"),
        (b"\x80\x04]K\x01K\x02s.", "sets keys of a list"),
        (b"\x80\x04}]K\x01s.", "a list as a key"),
        (b"\x80\x04h\x05.", "recalls what it never stored"),
        (b"\x80\x04.", "empty stack"),
        (b"\x80\x04e.", "mark that it never set"),
        (b"\x80\x04\x82\x01.", "EXT1 has no place"),
        (b"\x80\x05\x97.", "NEXT_BUFFER has no place"),
        (b"\x80\x09N.", "pickle protocol 9"),
        (b"\x80\x04K\x01K\x02\x93.", "no text"),
        (b"\x80\x04N", "ends after 3 bytes"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x", "more are announced"),
        (b"\x80\x04\x8a\xffxx.", "more are announced"),
        (b"\x80\x02]q\x00h\x00a.", "holds itself"),
        (b"\x80\x02}q\x00K\x01h\x00s.", "holds itself"),
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(80), "cut short"),
        (b"\x1f\x8b\x08" + bytes(30), ""),
        (b"<html>404</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (b'{"a": 1}', "JSON"),
        (b"\x04\x22\x4d\x18abc", "lz4"),
        (struct.pack("<Q", 20) + b'{"a":{}}            ', "safetensors"),
        (b"\x00 no pickle", "unknown"),
    ],
)
def test_broken_and_crafted_pickles_end_in_one_error(tmp_path, content, expected):
    assert expected in refused(tmp_path / "x", content)


def test_shared_parts_are_not_multiplied(tmp_path):
    """A billion laughs: sixty pairs, each twice the one before; as a key, their hash would never end."""
    laughs = b"\x80\x02(K\x01K\x01tq\x00" + b"".join(
        b"0h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60)
    )
    (tmp_path / "x").write_bytes(laughs + b".")
    found = read_inert(tmp_path / "x")
    assert found[0] is found[1]
    assert "as a key" in refused(tmp_path / "x", b"\x80\x02}" + laughs[2:] + b"K\x01s.")
    record = Inert("", "persistent id", ("storage", Inert("torch", "FloatStorage"), found, "cpu", 1))
    with pytest.raises(ValueError, match="a storage whose key is no name"):  # a message would print for ever
        storage_id(record)


def test_amplified_copies_stop_at_max_bytes(tmp_path):
    text = (
        b"\x80\x02X"
        + struct.pack("<I", 100_000)
        + b"a" * 100_000
        + b"q\x00X\x06\x00\x00\x00latin1q\x010]q\x02("
    )
    call = b"c_codecs\nencode\nh\x00h\x01\x86R"
    message = refused(tmp_path / "x", text + call * 100 + b"e.", max_bytes=200_000)
    assert "max_bytes" in message


def short_text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


NUMBERS = b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(5000))
BYTE_TYPE = b"cnumpy\ndtype\n" + short_text("u1") + b"\x85R"
BYTE_ARRAY = b"cnumpy\nndarray\n)R(K\x01J" + struct.pack("<i", 100_000) + b"\x85h\x01\x89h\x00tb"
AMPLIFIERS = {  # what a few bytes make, and how often
    "sets": b"(" + b"\x8f" * 300_000 + b"l.",
    "lists": b"(" + b"]" * 300_000 + b"l.",
    "dicts": b"(" + b"}" * 300_000 + b"l.",
    "tuples": b")" + b"\x85" * 300_000 + b"0N.",
    "marks": b"(" * 300_000 + b"N.",
    "memo": b"N" + b"\x94" * 300_000 + b".",
    "records": b"cx\ny\nq\x000(" + b"h\x00)R" * 100_000 + b"l.",
    "calls": b"ccopyreg\n__newobj__\nq\x000(cx\ny\n" + b"N" * 5000 + b"tq\x010("
    + b"h\x00h\x01R" * 5000 + b"l.",
    "mapping": b"}(" + NUMBERS + b"uq\x000ccollections\nOrderedDict\n(" + b"h\x00" * 5000 + b"tR.",
    "text as bytes": short_text("a" * 100_000) + b"q\x000" + BYTE_TYPE + b"q\x010("
    + BYTE_ARRAY * 500 + b"l.",
    "bytearray": b"\x96" + struct.pack("<Q", 100_000) + bytes(100_000) + b"q\x000(" + b"h\x00" * 500 + b"l.",
    "text numbers": b"cnumpy\ndtype\n" + short_text("S100000") + b"\x85Rq\x000B" + struct.pack("<I", 100_000)
    + b"a" * 100_000 + b"q\x010cnumpy.core.multiarray\nscalar\nq\x020("
    + b"h\x02h\x00h\x01\x86R" * 500 + b"l.",
}  # fmt: skip


@pytest.mark.parametrize("name", AMPLIFIERS)
def test_what_small_records_make_is_charged(name, tmp_path):
    limit = 4 << 20
    (tmp_path / "x").write_bytes(b"\x80\x05" + AMPLIFIERS[name])
    tracemalloc.start()
    message = refused(tmp_path / "x", max_bytes=limit)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "max_bytes" in message and peak < 2 * limit, f"{peak / 2**20:.1f} MiB"


def test_a_dictionary_of_many_words_fits(tmp_path):
    words = {f"word{n}": n for n in range(20_000)}
    (tmp_path / "x").write_bytes(pickle.dumps(words, protocol=4))
    assert read_inert(tmp_path / "x", max_bytes=800 * len(words)) == words


def test_nested_pickles_count_their_opcodes_together(tmp_path, monkeypatch):
    dtype = b"U\x05dtypecnumpy\ndtype\nU\x01O\x85RU\x05shapeK\x01\x85"
    array = (
        b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)R}(" + dtype + b"ub" + b"\x80\x02(" + b"N" * 900 + b"l."
    )
    monkeypatch.setattr("speechgpt.data.pickle_machine.MAX_OPCODES", 2000)
    (tmp_path / "x").write_bytes(b"\x80\x02(" + array * 2 + b"l.")
    assert [len(x) for x in read_inert(tmp_path / "x")] == [900, 900]
    assert "more than 2000 opcodes" in refused(tmp_path / "x", b"\x80\x02(" + array * 3 + b"l.")


@pytest.mark.parametrize("depth", [150, 100_000])
def test_deep_nesting_is_refused(tmp_path, depth):
    assert "deep" in refused(tmp_path / "x", b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".")
    assert "deep" in refused(tmp_path / "x", b"\x80\x02N" + b"\x85" * depth + b".")
    types = b"ctorch._tensor\n_rebuild_from_type_v2\n"
    inner = b"ctorch._utils\n_rebuild_tensor\n)R"
    for _ in range(min(depth, 1000)):
        inner = types + types + b"N" + inner + b"\x85\x87R"
    refused(tmp_path / "x", b"\x80\x02" + inner + b".")


PACK = {"zlib": zlib.compress, "gzip": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("name", PACK)
def test_decompression_bombs_stop(tmp_path, name):
    bomb = PACK[name](b"\x80\x04\x8e" + struct.pack("<Q", 64 << 20) + bytes(64 << 20) + b".")
    assert len(bomb) < 100_000
    assert "max_bytes" in refused(tmp_path / "x", bomb, max_bytes=1 << 20)
    cut = refused(tmp_path / "x", PACK[name](pickle.dumps(os.urandom(5000)))[:3000])
    assert "early" in cut or "ends" in cut


def test_a_deflated_zip_bomb_stops(tmp_path):
    with zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x04\x8e" + struct.pack("<Q", 64 << 20) + bytes(64 << 20) + b".")
    assert "max_bytes" in refused(tmp_path / "x", max_bytes=1 << 20)


def test_an_lzma_header_may_not_ask_for_gigabytes(tmp_path):
    header = b"\x5d" + struct.pack("<I", 1 << 31) + b"\xff" * 8
    assert "emory" in refused(tmp_path / "x", header + bytes(50))


def rewritten(path: Path, change) -> bytes:
    """The torch zip with its pickle changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info.filename, change(data) if info.filename.endswith("data.pkl") else data)
    return out.getvalue()


@pytest.mark.parametrize("size", [1 << 20, (1 << 31) - 1, -1])
def test_lying_tensor_sizes_take_no_memory(tmp_path, size):
    torch.save({"x": torch.zeros(777)}, tmp_path / "x")
    lie = b"J" + struct.pack("<i", size)
    truth = b"M" + struct.pack("<H", 777)
    as_view = rewritten(tmp_path / "x", lambda p: lie.join(p.rsplit(truth, 1)))
    as_count = rewritten(tmp_path / "x", lambda p: p.replace(truth, lie, 1))
    for content in (as_view, as_count):
        message = refused(tmp_path / "y", content)
        assert "storage" in message or "shape" in message


def test_expanded_tensors_and_missing_storages_are_refused(tmp_path):
    torch.save({"x": torch.zeros(1).expand(1_000_000)}, tmp_path / "x")
    assert "in a storage of 1 numbers" in refused(tmp_path / "x")
    torch.save({"x": torch.zeros(5)}, tmp_path / "x")
    out = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "x") as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            if not info.filename.endswith("/data/0"):
                new.writestr(info.filename, old.read(info))
    assert "storage 0 is not in the file" in refused(tmp_path / "y", out.getvalue())


def survives_mutations(path: Path, whole: bytes, seed: int, changes: int, **limits) -> None:
    """300 files of `whole` with `changes` bytes drawn anew: each is read, or refused by its name."""
    generator = np.random.default_rng(seed)
    for _ in range(300):
        broken = bytearray(whole)
        for place in generator.integers(0, len(whole), changes):
            broken[place] = generator.integers(256)
        path.write_bytes(broken)
        try:
            read_inert(path, **limits)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")


@pytest.mark.parametrize("options", [{}, LEGACY])
def test_truncated_and_mutated_files_end_in_clear_errors(tree, tmp_path, options):
    torch.save(tree, tmp_path / "x.pt", **options)
    whole = (tmp_path / "x.pt").read_bytes()
    for cut in range(1, len(whole), max(1, len(whole) // 60)):
        refused(tmp_path / "y", whole[:cut])
    survives_mutations(tmp_path / "y", whole, seed=0, changes=4)


def test_mutated_joblib_files_end_in_clear_errors(tmp_path):
    joblib.dump({"a": np.arange(40.0), "b": ["x", (1, 2)]}, tmp_path / "x")
    whole = (tmp_path / "x").read_bytes()
    survives_mutations(tmp_path / "y", whole, seed=1, changes=2, max_bytes=1 << 24)


def test_other_zips_and_missing_files(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.arange(3))
    assert "not one that torch.save wrote" in refused(tmp_path / "x.npz")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_inert(tmp_path / "none")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "script")
    assert "TorchScript" in refused(tmp_path / "script")


def test_every_opcode_is_handled_or_refused(tmp_path):
    for opcode in pickletools.opcodes:
        for argument in (b"", b"\x00" * 9, b"x\n" * 3, b"\xff" * 9):
            (tmp_path / "x").write_bytes(b"\x80\x04" + opcode.code.encode("latin-1") + argument + b".")
            try:
                read_inert(tmp_path / "x")
            except ValueError as error:
                assert str(error).startswith(str(tmp_path))
