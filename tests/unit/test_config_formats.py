import dataclasses
import pickle

import pytest

from stratrun.config.formats import json, python, toml
from stratrun.errors import ConfigError


def lines(data, path=()):
    """Every key that has a place, by its path."""
    found = {}
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        if isinstance(data, dict) and key in data.places:
            found[(*path, key)] = int(data.places[key].rpartition(":")[2])
        if isinstance(value, dict | list | tuple):
            found |= lines(value, (*path, key))
    return found


def test_json_keys_know_their_lines():
    data = json.read(
        '{"a": 1,\n "b": [1, {"c": "}{,:\\""},\n {"d\\"": {"e":\n2}}],\n "f": [[{"g": []}]]}', "c.json"
    )
    assert data["b"][1] == {"c": '}{,:"'}
    assert lines(data) == {
        ("a",): 1,
        ("b",): 2,
        ("b", 1, "c"): 2,
        ("b", 2, 'd"'): 3,
        ("b", 2, 'd"', "e"): 3,
        ("f",): 5,
        ("f", 0, 0, "g"): 5,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n"b": {"x": 1},\n"a": 2}', r"c.json:3: 'a' is there already \(c.json:1\)"),
        ('{"a": 1,\n}', "c.json:2: not JSON: "),
        ('{"a": ' + "9" * 5000 + "}", "c.json: cannot be read as JSON: "),
        ("[" * 100000, "c.json: cannot be read as JSON: "),
    ],
)
def test_broken_json_is_told_with_its_line(text, message):
    with pytest.raises(ConfigError, match=message):
        json.read(text, "c.json")


TOML = '''
# [no]
title = "x # y = 1"
numbers = [ 1.5, """a"""", "],", \'\'\'b\'\'\'\', '],',
  2 ] # two
[a.b]
c.d = 1.5
'q.r' = 2024-01-01T00:00:00
"e f" = 07:30:00
text = """
[no]
x = 1 ""\\""""
raw = \'\'\'
[[hooks]]\'\'\'
tables = [ {f = 1, g = [1, {h = 2}]},
  # between
  {f = 'a,}'},
]
[[hooks]]
x = 1
[hooks.y]
z = -1e-3
[[hooks]]
x = 2
[[hooks.k]]
v = {w = {u = "s"}}
[[hooks.k]]
v.w = 3
v.u = 4
'''


def test_toml_keys_know_their_lines():
    data = toml.read(TOML, "c.toml")
    assert lines(data) == {
        ("title",): 3,
        ("numbers",): 4,
        ("a",): 6,
        ("a", "b"): 6,
        ("a", "b", "c"): 7,
        ("a", "b", "c", "d"): 7,
        ("a", "b", "q.r"): 8,
        ("a", "b", "e f"): 9,
        ("a", "b", "text"): 10,
        ("a", "b", "raw"): 13,
        ("a", "b", "tables"): 15,
        ("a", "b", "tables", 0, "f"): 15,
        ("a", "b", "tables", 0, "g"): 15,
        ("a", "b", "tables", 0, "g", 1, "h"): 15,
        ("a", "b", "tables", 1, "f"): 17,
        ("hooks",): 19,
        ("hooks", 0, "x"): 20,
        ("hooks", 0, "y"): 21,
        ("hooks", 0, "y", "z"): 22,
        ("hooks", 1, "x"): 24,
        ("hooks", 1, "k"): 25,
        ("hooks", 1, "k", 0, "v"): 26,
        ("hooks", 1, "k", 0, "v", "w"): 26,
        ("hooks", 1, "k", 0, "v", "w", "u"): 26,
        ("hooks", 1, "k", 1, "v"): 28,
        ("hooks", 1, "k", 1, "v", "w"): 28,
        ("hooks", 1, "k", 1, "v", "u"): 29,
    }


def test_toml_dates_become_text_as_in_yaml():
    data = toml.read(TOML, "c.toml")["a"]["b"]
    assert data["q.r"] == "2024-01-01T00:00:00" and data["e f"] == "07:30:00"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\nb = 1\na = 2\nc = 1\n", "c.toml:3: not TOML: Cannot overwrite a value"),
        ("a = 1\nb: 2\n", "c.toml:2: not TOML: "),
        ("a = " + "[" * 5000, "c.toml: cannot be read as TOML: "),
    ],
)
def test_broken_toml_is_told_with_its_line(text, message):
    with pytest.raises(ConfigError, match=message):
        toml.read(text, "c.toml")


PYTHON = """
import math
from math import pi
from math import tau as full
_private = 1
def helper(depth):
    full = 1
    return dict(depth=depth, more=dict(x=1))
class Net:
    attribute = 1
model = dict(
    type=Net,
    backbone={"depth": 1,
              "stages": [dict(a=1),
                         dict(b=2)]},
    neck=helper(2))
model["lr"] = pi
model["backbone"]["late"] = 3
module = math
if True:
    seed = 1
else:
    seed = 2
for number in range(2):
    hooks = [dict(type="A", n=number)]
first, (second, third) = 1, (2, 3)
typed: int = 4
typed += 1
loss = math.sin
"""


def test_python_keeps_what_is_assigned_to_public_names_only():
    data = python.read(PYTHON, "c.py")
    assert list(data) == ["model", "seed", "hooks", "first", "second", "third", "typed", "loss"]
    assert data["hooks"] == [{"type": "A", "n": 1}] and data["typed"] == 5


def test_python_keys_know_their_lines():
    assert lines(python.read(PYTHON, "c.py")) == {
        ("model",): 11,
        ("model", "type"): 12,
        ("model", "backbone"): 13,
        ("model", "backbone", "depth"): 13,
        ("model", "backbone", "stages"): 14,
        ("model", "backbone", "stages", 0, "a"): 14,
        ("model", "backbone", "stages", 1, "b"): 15,
        ("model", "backbone", "late"): 18,
        ("model", "neck"): 16,
        ("model", "neck", "depth"): 16,
        ("model", "neck", "more"): 16,
        ("model", "neck", "more", "x"): 16,
        ("model", "lr"): 17,
        ("seed",): 23,
        ("hooks",): 25,
        ("hooks", 0, "type"): 25,
        ("hooks", 0, "n"): 25,
        ("first",): 26,
        ("second",): 26,
        ("third",): 26,
        ("typed",): 28,
        ("loss",): 29,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\nb = \n", "c.py:2: not Python: invalid syntax"),
        ("a = 1\n\ndef f():\n    return 1 / 0\nb = f()\n", "c.py:4: ZeroDivisionError: division by zero"),
        ("a = 1\nimport no_such_module\n", "c.py:2: ModuleNotFoundError: No module named 'no_such_module'"),
        ("a = '\0'", "c.py: not Python: "),
    ],
)
def test_broken_python_is_told_with_its_line(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        python.read(text, "c.py")
    assert caught.value.__cause__ is not None


def test_classes_of_a_python_config_can_be_pickled():
    text = (
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass Options:\n    depth: int = 3\nmodel = dict(options=Options())\n"
    )
    options = python.read(text, "c.py")["model"]["options"]
    assert dataclasses.asdict(pickle.loads(pickle.dumps(options))) == {"depth": 3}
