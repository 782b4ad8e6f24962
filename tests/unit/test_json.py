"""Stored JSON is read in a quicker way than `json.loads`, and read alike."""

from __future__ import annotations

import json

import pytest

from pgscheduler._json import load_json


@pytest.mark.parametrize("text", ["{}", '{"a": [1, "ü"]}', " [1]\n", "1 ", "null", '"x"'])
def test_json_is_read_as_the_json_module_reads_it(text: str) -> None:
    assert load_json(text) == json.loads(text)


@pytest.mark.parametrize("text", ["", " ", "{", "[1] x", "nul"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expecting|Extra data"):
        load_json(text)
