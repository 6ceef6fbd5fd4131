"""The numbers of version 0.1, taken before its inside was rebuilt: see tests/same_numbers.py for bit equality."""

import json
from pathlib import Path

import pytest
from same_numbers import cases, numbers_of

RECORDED = json.loads(Path(__file__).with_suffix(".json").with_stem("same_numbers").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", RECORDED)
def test_values_are_those_of_version_0_1(name):
    case, norm = name.rsplit(", norm ", 1)
    values = numbers_of(cases()[case], norm == "True", norm == "False")["values"]
    assert values[-3:] == pytest.approx(RECORDED[name], rel=1e-9)  # other processors may round otherwise


def test_a_change_would_be_seen():
    name = "tv True power 0.3"
    changed = {**cases()[name], "radius": 0.31}
    assert numbers_of(changed, False, True)["values"] != pytest.approx(numbers_of(cases()[name], False, True)["values"])
