import copy
import math
import pickle
import subprocess
import sys

import pytest

from stratrun.config import Config
from stratrun.errors import ConfigError


def written(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


def test_nested_dicts_have_attributes_also_inside_lists_and_tuples():
    config = Config({"a": {"b": 1}, "hooks": [{"type": "A"}], "pair": ({"x": 2}, 3)}, c={"d": 4})
    assert (config.a.b, config.hooks[0].type, config.pair[0].x, config.c.d) == (1, "A", 2, 4)
    assert config == {"a": {"b": 1}, "hooks": [{"type": "A"}], "pair": ({"x": 2}, 3), "c": {"d": 4}}


def test_every_way_of_setting_a_dict_makes_it_a_config():
    config = Config()
    config["a"] = {"b": {}}
    config.c = {"d": 1}
    config.update({"e": {"f": 2}}, g={"h": 3})
    config.setdefault("i", {})["j"] = 4
    assert all(type(config[key]) is Config for key in "acegi")
    assert config.i == {"j": 4}


def test_a_misspelt_attribute_names_the_nearest_key():
    with pytest.raises(AttributeError, match="no key 'optimzer'; did you mean 'optimizer'"):
        _ = Config(optimizer={}).optimzer
    with pytest.raises(AttributeError, match="no key 'optimzer'; did you mean 'optimizer'"):
        del Config(optimizer={}).optimzer
    assert getattr(Config(), "seed", 7) == 7


def test_an_attribute_that_would_hide_a_method_is_refused():
    config = Config()
    with pytest.raises(AttributeError, match="'items' is a method of Config"):
        config.items = 3
    config["items"] = 3
    assert config["items"] == 3 and list(config.items()) == [("items", 3)]
    del config["items"]
    config.lr = 1
    del config.lr
    assert config == {}


def test_changing_a_copy_leaves_the_original(tmp_path):
    config = Config.load(written(tmp_path, "c.yaml", "a: {b: [1]}\n"))
    for made in (config.copy(), Config(config), copy.deepcopy(config)):
        made.a.b.append(2)
        made.a.c = 3
    assert config == {"a": {"b": [1]}}


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, Config, Config.copy])
def test_a_copy_keeps_the_places_on_every_level(again, tmp_path):
    config = Config.load(written(tmp_path, "c.yaml", "a:\n  b: 1\nl:\n- c: 1\n"))
    made = again(config)
    assert type(made.a) is Config
    assert made.places == config.places
    assert made.a.places == {"b": f"{tmp_path}/c.yaml:2"}
    assert made.l[0].places == {"c": f"{tmp_path}/c.yaml:4"}


def test_pickling_keeps_data_and_places(tmp_path):
    config = Config.load(written(tmp_path, "c.yaml", "a:\n  b: 1\n"))
    made = pickle.loads(pickle.dumps(config))
    assert made == config and made.a.places == config.a.places and made.places == config.places


def test_a_value_set_by_code_loses_the_place_of_the_old_one(tmp_path):
    config = Config.load(written(tmp_path, "c.yaml", "a: 1\nb: 2\nc: 3\n"))
    config.a = 5
    config.update(b=6)
    assert list(config.places) == ["c"]
    assert list(Config(config, c=7).places) == []


@pytest.mark.parametrize("ending", [".yaml", ".yml", ".json"])
def test_a_dump_loads_back_to_the_same_data(ending, tmp_path):
    data = {
        "numbers": [1, -2, 1e-3, 1e22, 5e-324, 0.1, math.inf, -math.inf],
        "text_like_numbers": ["1e-3", "0o17", "10", ".5", "1_000", "0x1F", ".inf", "+1"],
        "text_like_others": ["no", "yes", "true", "null", "~", "", "2024-01-01", "1:30", "<<", "="],
        "awkward": [
            "a: b",
            "#",
            " x ",
            "two\nlines\n",
            "\ttab",
            "é😀",
            "-",
            "!tag",
            "&a",
            "*a",
            "'\"",
            "%",
            "\ud800",
        ],
        "none": None,
        "flags": [True, False],
        "nested": {"empty": {}, "none": [], "list": [[1, [2]], {"a": [{"b": 1}]}]},
        "long": "word " * 60,
    }
    path = tmp_path / f"c{ending}"
    Config(data).dump(path)
    assert Config.load(path) == data


def test_whole_number_keys_survive_yaml():
    assert "intervals:\n  0: 1\n  10: 5\n" in Config(intervals={0: 1, 10: 5}).to_yaml()


def test_text_is_quoted_where_older_yaml_would_read_something_else():
    assert Config(d="no", c="2024-01-01", b="1e-3", a=1e-5).to_yaml() == (
        "d: 'no'\nc: '2024-01-01'\nb: '1e-3'\na: 1.0e-05\n"
    )


def test_objects_are_written_as_text_that_is_the_same_in_every_run():
    class Odd:
        def __repr__(self):
            raise RuntimeError

    text = Config(a=Config, b=len, c=object(), d={8, 1}, e=(1, 2), f=Odd()).to_yaml()
    assert "a: stratrun.config.config.Config\n" in text
    assert "b: builtins.len\n" in text
    assert "c: <builtins.object>\n" in text
    assert "d: [1, 8]\n" in text and "e: [1, 2]\n" in text
    assert "Odd>" in text


def test_a_dump_under_an_unknown_ending_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"written as .yaml or .json, not as '.toml'"):
        Config().dump(tmp_path / "c.toml")


def test_pretty_shows_each_value_as_an_override_with_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(
        tmp_path,
        "c.yaml",
        "optimizer:\n  type: SGD\n  betas: [1, 2]\nhooks:\n- type: A\n  text: |\n    b\n    c\n",
    )
    config = Config.load("c.yaml", ["optimizer.lr=1e-3"])
    config.extra = {}
    rows = [tuple(part.strip() for part in row.split("#")) for row in config.pretty().splitlines()]
    assert rows == [
        ("optimizer.type=SGD", "c.yaml:2"),
        ("optimizer.betas=[1, 2]", "c.yaml:3"),
        ("optimizer.lr=0.001", "override 'optimizer.lr=1e-3'"),
        ("hooks.0.type=A", "c.yaml:5"),
        (r'hooks.0.text="b\nc\n"', "c.yaml:6"),
        ("extra={}",),
    ]
    assert Config.load(written(tmp_path, "e.yaml", ""), [rows[1][0], rows[2][0]]).optimizer.lr == 0.001


def test_the_config_package_does_not_import_torch():
    code = "import sys, stratrun.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=50).returncode == 0
