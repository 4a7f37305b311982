import os

import pytest

from stratrun.config import Config
from stratrun.errors import ConfigError


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write files into the current folder, which is empty: `write(**{"a.yaml": "x: 1"})`."""
    monkeypatch.chdir(tmp_path)

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_every_format_gives_the_same_data_with_its_own_places(write):
    write(
        {
            "c.yaml": "optimizer:\n  type: SGD\n  lr: 1e-3\nhooks: [{type: A}]\n",
            "c.yml": "optimizer:\n  type: SGD\n  lr: 1e-3\nhooks: [{type: A}]\n",
            "c.toml": 'hooks = [{type = "A"}]\n[optimizer]\ntype = "SGD"\nlr = 1e-3\n',
            "c.json": '{"optimizer": {\n"type": "SGD",\n"lr": 1e-3}, "hooks": [{"type": "A"}]}',
            "c.py": "optimizer = dict(\n  type='SGD',\n  lr=1e-3)\nhooks = [dict(type='A')]\n",
            "C.YAML": "optimizer:\n  type: SGD\n  lr: 1e-3\nhooks: [{type: A}]\n",
        }
    )
    for name, line in {"c.yaml": 3, "c.yml": 3, "c.toml": 4, "c.json": 3, "c.py": 3, "C.YAML": 3}.items():
        config = Config.load(name)
        assert config == {"optimizer": {"type": "SGD", "lr": 1e-3}, "hooks": [{"type": "A"}]}
        assert type(config.hooks[0]) is Config
        assert config.optimizer.places["lr"] == f"{name}:{line}"


def test_dicts_merge_and_all_else_replaces(write):
    write(
        {
            "base.yaml": "a: {x: 1, y: {p: 1, q: 1}}\nlist: [1, {z: 1}]\none: 1\nfull: {k: 1}\nnone: {k: 1}",
            "c.yaml": "_base_: base.yaml\na: {y: {q: 2}}\nlist: [{w: 1}]\none: {x: y}\nfull: 3\nnone: null\n",
        }
    )
    assert Config.load("c.yaml") == {
        "a": {"x": 1, "y": {"p": 1, "q": 2}},
        "list": [{"w": 1}],
        "one": {"x": "y"},
        "full": 3,
        "none": None,
    }


def test_each_value_knows_the_file_that_set_it_last(write):
    write(
        {
            "base.toml": "x = 1\ny = 1\n[a]\np = 1\nq = 1\n",
            "mid.json": '{"_base_": "base.toml",\n"y": 2}',
            "c.py": "_base_ = 'mid.json'\na = dict(q=2)\n",
        }
    )
    config = Config.load("c.py", ["a.r=3"])
    assert config == {"x": 1, "y": 2, "a": {"p": 1, "q": 2, "r": 3}}
    assert config.places == {"x": "base.toml:1", "y": "mid.json:2", "a": "override 'a.r=3'"}
    assert config.a.places == {"p": "base.toml:4", "q": "c.py:2", "r": "override 'a.r=3'"}


def test_delete_drops_what_would_be_inherited_and_leaves_no_trace(write):
    write(
        {
            "base.yaml": "optimizer: {type: SGD, momentum: 0.9}\nkeep: {a: {b: 1}}\n",
            "c.yaml": (
                "_base_: base.yaml\noptimizer: {_delete_: true, type: AdamW}\n"
                "keep: {_delete_: false, a: {c: 1}}\nnew: {_delete_: true, list: [{_delete_: true, x: 1}]}\n"
            ),
        }
    )
    assert Config.load("c.yaml") == {
        "optimizer": {"type": "AdamW"},
        "keep": {"a": {"b": 1, "c": 1}},
        "new": {"list": [{"x": 1}]},
    }


def test_later_bases_win_over_earlier_ones(write):
    write({"a.yaml": "x: 1\ny: 1\n", "b.yaml": "y: 2\nz: 2\n", "c.yaml": "_base_: [a.yaml, b.yaml]\nz: 3\n"})
    assert Config.load("c.yaml") == {"x": 1, "y": 2, "z": 3}


def test_a_base_is_found_beside_the_file_that_names_it(write):
    write({"one/c.yaml": "_base_: ../two/b.yaml\n", "two/b.yaml": "_base_: a.yaml\n", "two/a.yaml": "x: 1\n"})
    config = Config.load("one/c.yaml")
    assert config == {"x": 1}
    assert config.places["x"] == f"two{os.sep}a.yaml:1"


def test_a_base_shared_by_two_bases_is_read_once_and_not_changed_by_them(write):
    write(
        {
            "root.py": "import os\nx = dict(a=1)\nwith open('log', 'a') as _log:\n    _ = _log.write('x')\n",
            "a.py": "_base_ = 'root.py'\nx = dict(b=1)\n",
            "b.py": "_base_ = 'root.py'\nx = dict(c=1)\n",
            "c.py": "_base_ = ['a.py', 'b.py']\n",
        }
    )
    assert Config.load("c.py") == {"x": {"a": 1, "b": 1, "c": 1}}
    with open("log") as log:
        assert log.read() == "x"


def test_bases_in_a_circle_are_refused_with_the_chain(write):
    write(
        {
            "a.yaml": "_base_: sub/b.json\n",
            "sub/b.json": '{"_base_": "../a.yaml"}',
            "self.yaml": "_base_: self.yaml",
        }
    )
    with pytest.raises(ConfigError, match=r"in a circle: a.yaml -> sub.b.json -> a.yaml \(sub.b.json:1\)"):
        Config.load("a.yaml")
    with pytest.raises(ConfigError, match=r"in a circle: self.yaml -> self.yaml"):
        Config.load("self.yaml")


def test_a_file_bomb_of_bases_costs_one_reading_of_each_file(write):
    write({f"{i}.yaml": f"_base_: [{i + 1}.yaml, {i + 1}.yaml]\n" for i in range(30)} | {"30.yaml": "x: 1"})
    assert Config.load("0.yaml") == {"x": 1}


def test_an_endless_chain_of_bases_is_refused(write):
    write({f"{i}.yaml": f"_base_: {i + 1}.yaml\n" for i in range(60)})
    with pytest.raises(ConfigError, match="through more than 32 files"):
        Config.load("0.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: 1\n_base_: basf.yaml", r"no config 'basf.yaml'; did you mean 'base.yaml'\? \(c.yaml:2\)"),
        ("_base_: nowhere/base.yaml", r"there is no folder 'nowhere' \(c.yaml:1\)"),
        ("_base_: 3", r"_base_ takes a file name or a list of them, got a int \(c.yaml:1\)"),
        ('_base_: "a\\0.yaml"', r"_base_ takes a file name or a list of them, got a str"),
        (f"_base_: {'a' * 300}.yaml", r"cannot be read: File name too long \(c.yaml:1\)"),
        ("_base_: [{a: 1}]", r"_base_ takes a file name or a list of them, got a list \(c.yaml:1\)"),
        (
            "_base_: https://me:pw@host/c.yaml",
            r"local files only, not from 'https://\*\*\*@host/c.yaml' \(c.yaml:1\)",
        ),
        ("a:\n  _base_: base.yaml", r"_base_ belongs at the top level of a file \(c.yaml:2\)"),
        ("a: [{b: {_base_: base.yaml}}]", r"_base_ belongs at the top level of a file \(c.yaml:1\)"),
        ("a: {_delete_: maybe}", r"_delete_ must be true or false, got 'maybe' \(c.yaml:1\)"),
        ("- 1", "c.yaml: a config is a mapping of names to values, not a list"),
        ("a: b: c", "c.yaml:1: mapping values"),
        ("a: 1\nb: ${a.x}", r"'\$\{a.x\}' would stay as it is.*an override or a .py config \(c.yaml:2\)"),
        ('a:\n- ["{{ _base_.x }}"]', r"'\{\{ _base_.x \}\}' would stay as it is.* \(c.yaml:1\)"),
        ("a: '{{ fileDirname }}/x'", r"'\{\{ fileDirname \}\}' would stay"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_place(text, message, write):
    write({"base.yaml": "x: 1", "c.yaml": text})
    with pytest.raises(ConfigError, match=message):
        Config.load("c.yaml")


def test_templates_that_are_no_interpolation_stay(write):
    write({"c.yaml": "a: '{{ messages[0] }} {{ bos_token }} $HOME ${'\n"})
    assert Config.load("c.yaml").a == "{{ messages[0] }} {{ bos_token }} $HOME ${"


def test_an_empty_file_is_an_empty_config(write):
    write({"c.yaml": "# nothing yet\n", "c.toml": "", "c.py": ""})
    assert Config.load("c.yaml") == Config.load("c.toml") == Config.load("c.py") == {}


def test_a_byte_order_mark_is_no_part_of_the_first_key(write):
    write({"c.yaml": "\ufeffa: 1\n", "c.json": '\ufeff{"a": 1}', "c.toml": "\ufeffa = 1"})
    assert Config.load("c.yaml") == Config.load("c.json") == Config.load("c.toml") == {"a": 1}


def test_a_path_that_is_no_config_says_why(write, tmp_path):
    write({"c.ini": "", "base.yaml": "", "big.yaml": "a: 1\n" * 200_000})
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    os.mkfifo("pipe.yaml")
    for path, reason in {
        "base.yml": r"no config 'base.yml'; did you mean 'base.yaml'\?",
        "away/c.yaml": "no config 'away/c.yaml': there is no folder 'away'",
        ".": "config '.' is a folder; name a file in it",
        "c.ini": "config 'c.ini': its format is told by its ending; known: .yaml, .yml, .toml, .json, .py",
        "pipe.yaml": "config 'pipe.yaml' is no regular file",
        "big.yaml": "config 'big.yaml' is larger than 512 KiB",
        "latin.yaml": "config 'latin.yaml' is not UTF-8 text",
        "s3://key:pw@bucket/c.yaml": r"local files only, not from 's3://\*\*\*@bucket/c.yaml'",
    }.items():
        with pytest.raises(ConfigError, match=reason):
            Config.load(path)


PATHS = ["os.system", "builtins.eval", "subprocess.Popen", "my_package_evil.Net", "my_package", ".x", "a.b.c"]


@pytest.mark.parametrize("path", [path for path in PATHS if "." in path])
def test_data_configs_name_no_code_outside_the_allowed_prefixes(path, write):
    write(
        {
            "c.yaml": f"a:\n- b:\n    type: {path}\n",
            "c.toml": f"\n\n[[a]]\nb = {{type = '{path}'}}\n"[1:],
            "c.json": f'{{\n\n"a": [[{{"type": "{path}"}}]]}}',
            "runner.yaml": f"\n\nrunner_type: {path}\n",
            "base.py": "x = 1",
            "child.py": "_base_ = 'c.yaml'",
        }
    )
    for name, place in {
        "c.yaml": "c.yaml:3",
        "c.toml": "c.toml:3",
        "c.json": "c.json:3",
        "runner.yaml": "runner.yaml:3",
        "child.py": "c.yaml:3",
    }.items():
        with pytest.raises(ConfigError, match=rf"type='{path}' would import code.* \({place}\)"):
            Config.load(name, allow=("my_package", ""))
    for override in (f"x.type={path}", f"x=[{{type: {path}}}]", f"runner_type={path}"):
        with pytest.raises(ConfigError, match=r"would import code.*override"):
            Config.load("base.py", [override], allow=("my_package", ""))


def test_allowed_prefixes_open_their_own_package_only(write):
    write({"c.yaml": "model: {type: my_package.nets.Net}\n"})
    assert Config.load("c.yaml", allow=["my_package"]).model.type == "my_package.nets.Net"
    assert Config.load("c.yaml", allow="my_package.nets.").model.type == "my_package.nets.Net"
    assert Config.load("c.yaml", allow=["my_package.nets.Net"]).model.type == "my_package.nets.Net"
    assert (
        Config.load("c.yaml", ["model.type=my_package.X"], allow=["my_package"]).model.type == "my_package.X"
    )
    with pytest.raises(ConfigError, match=r"only my_package.net is allowed"):
        Config.load("c.yaml", allow=["my_package.net"])


def test_a_python_config_may_name_anything(write):
    write({"c.py": "model = dict(type='os.system')\nother = dict(type=dict)\ntext = '${x}'\n"})
    assert Config.load("c.py") == {"model": {"type": "os.system"}, "other": {"type": dict}, "text": "${x}"}


def test_a_data_config_never_runs_a_python_file(write):
    write(
        {
            "evil.py": "open('canary', 'w').close()\n",
            "c.yaml": "_base_: evil.py\n",
            "d.PY": "",
            "e.yaml": "_base_: d.PY",
        }
    )
    for name in ("c.yaml", "e.yaml"):
        with pytest.raises(ConfigError, match=rf"is code, which a data config may not run.*\({name}:1\)"):
            Config.load(name)
    assert not os.path.exists("canary")


def test_a_python_config_inherits_data_and_code(write):
    write(
        {"a.yaml": "x: {a: 1}\n", "b.py": "_base_ = 'a.yaml'\nx = dict(b=2)\n", "c.py": "_base_ = ['b.py']\n"}
    )
    assert Config.load("c.py") == {"x": {"a": 1, "b": 2}}


def test_a_config_that_a_python_config_loads_keeps_its_places(write):
    write({"a.yaml": "\nlr: 1\n", "c.py": "from stratrun.config import Config\na = Config.load('a.yaml')\n"})
    assert Config.load("c.py").a.places == {"lr": "a.yaml:2"}
