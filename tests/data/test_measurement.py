import pytest

from speechgpt.data.measurement import Measurement


def test_a_speed_is_better_where_it_is_larger():
    speed = Measurement("units", "x real time", 8.0, 12.0, limit=24.0)
    assert speed.ratio == pytest.approx(1.5)
    assert speed.limit_share == pytest.approx(0.5)


def test_a_time_is_better_where_it_is_smaller():
    time = Measurement("first sound", "s", 0.8, 0.2, limit=0.1, lower_is_better=True)
    assert time.ratio == pytest.approx(4.0)
    assert time.limit_share == pytest.approx(0.5)


def test_without_baseline_or_limit_there_is_no_ratio():
    entry = Measurement("error", "dB", None, 60.0).to_dict()
    assert entry["ratio"] is None and entry["limit_share"] is None
    assert list(entry)[:6] == ["part", "unit", "baseline", "ours", "ratio", "limit_share"]
