import json
import sys
from types import ModuleType

import pytest

from speechgpt import bench
from speechgpt.cli import main
from speechgpt.data.measurement import Growth, Measurement, NotMeasuredError


@pytest.fixture
def area(monkeypatch):
    """An area of one figure, one without its data, one that breaks, and a curve."""

    def speed(machine, quick):
        assert machine.kind == "cpu" and quick
        yield Measurement("speed of it", "x real time", 2.0, 5.0, limit=10.0, note="equal")
        yield Measurement("its error", "dB", None, 61.0)

    def lacking(machine, quick):
        raise NotMeasuredError("fairseq is not installed")
        yield

    def broken(machine, quick):
        yield Measurement("half a part", "s", 1.0, 0.5, lower_is_better=True)
        raise KeyError("weights")

    def curve(machine, quick):
        for hours in (1.0, 10.0):
            yield Growth("extraction", "hours of audio", hours, 3 * hours, 1e6)

    module = ModuleType("an_area")
    module.parts = {"speed": speed, "lacking": lacking, "broken": broken}
    module.growth = {"growth": curve}
    monkeypatch.setitem(sys.modules, "an_area", module)
    monkeypatch.setattr(bench, "AREAS", ("an_area",))


def test_one_part_that_fails_costs_no_other_figure(area, tmp_path, capsys):
    assert main(["bench", "--device", "cpu", "--quick", "--out", str(tmp_path)]) == 2
    found = json.loads((tmp_path / "cpu.json").read_text())
    assert [e["part"] for e in found] == ["speed of it", "its error", "half a part"]
    assert found[0] | {"note": ""} == {
        "part": "speed of it", "unit": "x real time", "baseline": 2.0, "ours": 5.0, "ratio": 2.5,
        "limit_share": 0.5, "note": "",
    }  # fmt: skip
    assert found[2]["ratio"] == 2.0
    out, err = capsys.readouterr()
    assert "| speed of it | x real time | 2 | 5 | 2.50 | 50% | equal |" in out
    assert "broken: FAILED: KeyError: 'weights'" in out
    assert "lacking: not measured: fairseq is not installed" in err
    assert [p["size"] for p in json.loads((tmp_path / "cpu-growth.json").read_text())] == [1.0, 10.0]
    for name in ("cpu.png", "cpu-growth.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_parts_are_listed_and_chosen_by_words(area, tmp_path, capsys):
    assert main(["bench", "--list"]) == 0
    assert capsys.readouterr().out.split() == ["speed", "lacking", "broken", "growth"]
    assert main(["bench", "--device", "cpu", "--quick", "--only", "spe", "--out", str(tmp_path)]) == 0
    assert len(json.loads((tmp_path / "cpu.json").read_text())) == 2
    assert not (tmp_path / "cpu-growth.json").exists()
    assert main(["bench", "--only", "nothing", "--out", str(tmp_path)]) == 2
    assert "no part is called so" in capsys.readouterr().err
