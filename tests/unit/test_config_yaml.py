import math
import time

import pytest

from stratrun.config.formats import yaml
from stratrun.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E+3", 1000.0),
        ("1e3", 1000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("010", 10),
        ("0o10", 8),
        ("0xFf", 255),
        ("+12", 12),
        ("-7", -7),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("1e", "1e"),
        ("True", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("~", None),
        ("Null", None),
        ("", None),
        ("'1'", "1"),
        ('"null"', "null"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    read = yaml.read(f"a: {text}\n", "c.yaml")["a"]
    assert read == value and type(read) is type(value)


def test_nan_is_a_number():
    assert math.isnan(yaml.read("a: .NaN", "c.yaml")["a"])


def test_each_key_knows_its_line():
    data = yaml.read("a: 1\nb:\n\n  c:\n    - d: 1\n    -\n      e: 2\n", "c.yaml")
    assert data.places == {"a": "c.yaml:1", "b": "c.yaml:2"}
    assert data["b"].places == {"c": "c.yaml:4"}
    assert [item.places for item in data["b"]["c"]] == [{"d": "c.yaml:5"}, {"e": "c.yaml:7"}]


def test_what_an_alias_brings_keeps_its_line_and_is_a_copy():
    data = yaml.read("base: &b\n  lr: 1\none: *b\ntwo:\n  <<: *b\n  x: 2\n", "c.yaml")
    assert data["one"] == {"lr": 1} and data["two"] == {"x": 2, "lr": 1}
    assert data["two"].places == {"x": "c.yaml:6", "lr": "c.yaml:2"}
    assert data["one"] is not data["base"]


def test_own_keys_and_earlier_mappings_win_over_merged_ones():
    data = yaml.read("a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], x: 0}\n", "c.yaml")
    assert data["c"] == {"x": 0, "y": 1, "z": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 2\n  c: 3\n", r"c.yaml:4: 'c' is there already \(c.yaml:3\)"),
        ("a: 1\n\nb: &x [*x]", "c.yaml:3: an alias refers to the very value that it is part of"),
        ("a: 1\nb: *x", "c.yaml:2: found undefined alias 'x'"),
        ("a: b: c", "c.yaml:1: mapping values are not allowed here; check the indentation, or put"),
        ("a:\n\tb: 1", "c.yaml:2: .* indent with spaces, not tabs"),
        ("a: @x", "c.yaml:1: .* put the value in quotes"),
        ("a: [1", "c.yaml:1: expected ',' or ']'"),
        ("a: 1\n---\nb: 2", "c.yaml:2: expected a single document in the stream, but found another"),
        ("1.5: x", "c.yaml:1: a key must be text or a whole number, not '1.5'; put it in quotes"),
        ("yes: 1\ntrue: 2", "c.yaml:2: a key must be text or a whole number, not 'true'"),
        ("? [a]\n: 1", "c.yaml:1: a key must be .* not a list or a mapping"),
        ("a: 1\nb: !!int x", "c.yaml:2: 'x' cannot be read as int"),
        ("a: !!bool maybe", "c.yaml:1: 'maybe' cannot be read as bool"),
        ("a: " + "9" * 5000, "c.yaml:1: '9+...' cannot be read as int"),
        ("a: {<<: 3}", "c.yaml:1: '<<' takes a mapping or a list of mappings"),
        ("a: \x01", "c.yaml:1: cannot be read as YAML: unacceptable character"),
        ("%YAML 2.0\n---\na: 1", "c.yaml:1: found incompatible YAML document"),
    ],
)
def test_a_mistake_is_told_with_its_line(text, message):
    with pytest.raises(ConfigError, match=message):
        yaml.read(text, "c.yaml")


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir ['canary']",
        "!!python/object/new:os.mkdir ['canary']",
        "!!python/name:os.mkdir",
        "!!python/module:antigravity",
        "!!python/tuple [1]",
        "!!set {a}",
        "!!binary aGk=",
        "!!timestamp 2024-01-01",
        "!include x.yaml",
    ],
)
def test_no_tag_makes_an_object(tag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"c.yaml:2: the tag '!.*' is not plain data"):
        yaml.read(f"a: 1\nb: {tag}\n", "c.yaml")
    assert list(tmp_path.iterdir()) == []


def layers(line, first):
    made = [first]
    for depth in range(1, 30):
        made.append(line.format(depth, ", ".join([f"*a{depth - 1}"] * 10)))
    return "\n".join(made)


@pytest.mark.parametrize(
    "bomb",
    [
        layers("a{0}: &a{0} [{1}]", "a0: &a0 [x]"),
        layers("a{0}: &a{0} {{<<: [{1}]}}", "a0: &a0 {x: 1}"),
        "a: " + "[" * 5000,
        "- " * 5000,
        "a: " + "{b: " * 5000,
    ],
    ids=["aliases", "merge keys", "lists", "items", "mappings"],
)
def test_a_bomb_is_refused_before_it_goes_off(bomb):
    start = time.perf_counter()
    with pytest.raises(ConfigError, match=r"c.yaml:\d+: (more than 200000 values|nested more than 60 deep)"):
        yaml.read(bomb, "c.yaml")
    assert time.perf_counter() - start < 20


def test_one_value_is_read_like_a_value_in_a_file():
    data = yaml.read_value("{a: [1, {b: 1e-3}]}", "override 'x'")
    assert data == {"a": [1, {"b": 1e-3}]}
    assert data.places == {"a": "override 'x'"} and data["a"][1].places == {"b": "override 'x'"}
    assert yaml.read_value("'a #b'", "x") == "a #b"
    assert yaml.read_value("a#b", "x") == "a#b"


@pytest.mark.parametrize("text", ["#f00", "a #b", "[1] # x"])
def test_one_value_is_not_silently_cut_at_a_comment_sign(text):
    with pytest.raises(ConfigError, match=r"^place: '#' starts a comment; put the value in quotes$"):
        yaml.read_value(text, "place")


@pytest.mark.parametrize(
    "value",
    [
        1,
        1e-3,
        "a",
        "1",
        None,
        True,
        [1, "b"],
        {},
        [],
        "two\nlines",
        "a, b",
        [[1, [float("inf")]], [2]],
        "word " * 60,
    ],
)
def test_a_value_written_on_one_line_reads_back(value):
    text = yaml.write_value(value)
    assert "\n" not in text
    assert yaml.read_value(text, "x") == value
