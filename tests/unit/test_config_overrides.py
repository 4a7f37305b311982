import pytest

from stratrun.config import Config
from stratrun.errors import ConfigError


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load one fixed config with overrides."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(
        "optimizer: {type: SGD, lr: 0.1, momentum: 0.9}\n"
        "hooks: [{type: A, x: 1}, {type: B}]\nstrategy: ddp\nval_cfg: null\n"
        "work_dir: s3://user:canary@bucket/x\nintervals: {5: 1}\n"
    )
    return lambda *overrides, **more: Config.load("c.yaml", overrides, **more)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("true", True),
        ("no", "no"),
        ("null", None),
        ("", None),
        ("'1'", "1"),
        ("a=b", "a=b"),
        ("s3://b/x", "s3://b/x"),
        ("[1, {a: 2}]", [1, {"a": 2}]),
        (" 3 ", 3),
    ],
)
def test_values_are_typed_by_the_rules_of_yaml(text, value, load):
    assert load(f"new={text}").new == value


def test_dicts_on_the_way_are_made_and_dicts_that_are_there_are_kept(load):
    config = load("optimizer.lr=1", "a.b.c=2", "a.b.d=3")
    assert config.optimizer == {"type": "SGD", "lr": 1, "momentum": 0.9}
    assert config.a == {"b": {"c": 2, "d": 3}}


def test_a_mapping_merges_by_the_one_rule(load):
    assert load("optimizer={lr: 1, extra: {a: 1}}").optimizer == {
        "type": "SGD",
        "lr": 1,
        "momentum": 0.9,
        "extra": {"a": 1},
    }
    assert load("optimizer={_delete_: true, type: AdamW}").optimizer == {"type": "AdamW"}
    assert load("new={a: {_delete_: true, b: 1}}").new == {"a": {"b": 1}}


def test_a_scalar_replaces_and_the_last_override_wins(load):
    assert load("optimizer=SGD", "optimizer=AdamW").optimizer == "AdamW"


def test_list_items_are_named_by_number(load):
    config = load("hooks.0.x=2", "hooks.-1.y={z: 1}", "hooks.1.y.w=3")
    assert config.hooks == [{"type": "A", "x": 2}, {"type": "B", "y": {"z": 1, "w": 3}}]
    assert load("hooks.0=3").hooks[0] == 3


def test_tuples_of_a_python_config_stay_tuples(tmp_path):
    (tmp_path / "c.py").write_text("betas = (0.9, 0.99)\n")
    assert Config.load(tmp_path / "c.py", ["betas.1=0.95"]).betas == (0.9, 0.95)


def test_number_keys_are_found(load):
    assert load("intervals.5=2").intervals == {5: 2}


def test_a_single_override_need_not_be_a_list(load):
    assert Config.load("c.yaml", "optimizer.lr=5").optimizer.lr == 5


def test_an_overridden_value_knows_its_override_on_every_level(load):
    config = load("optimizer={lr: 1, extra: [{a: 1}]}")
    place = "override 'optimizer={lr: 1, extra: [{a: 1}]}'"
    assert config.places["optimizer"] == place
    assert config.optimizer.places == {
        "type": "c.yaml:1",
        "momentum": "c.yaml:1",
        "lr": place,
        "extra": place,
    }
    assert config.optimizer.extra[0].places == {"a": place}


def test_a_place_is_short_and_tells_no_secret(load):
    assert load("logger.api_key=canary").logger.places["api_key"] == "override 'logger.api_key=***'"
    assert load("logger={type: W, password: canary}").places["logger"] == "override 'logger=***'"
    assert load("url=https://me:canary@host").places["url"] == "override 'url=***'"
    assert load("x=" + "a" * 100).places["x"] == f"override 'x={'a' * 57}...'"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr", "override 'optimizer.lr' has no value; write key=value"),
        ("+optimizer.lr=1", r"override '\+optimizer.lr': write it without '\+', as optimizer.lr=value"),
        ("~optimizer=", "write it without '~'"),
        ("--optimizer.lr=1", "write it without '--', as optimizer.lr=value"),
        ("a..b=1", "override 'a..b': a key is empty"),
        ("=1", "a key is empty"),
        ("_base_=x.yaml", "_base_ belongs in a file"),
        ("optimizer._delete_=true", "_delete_ inside the value"),
        ("optimizer={_base_: x}", "_base_ belongs at the top level of a file"),
        (
            "optimizer.lr.x=1",
            "override 'optimizer.lr.x=1': optimizer.lr is a float, not a mapping; set it whole",
        ),
        ("val_cfg.x=1", r"val_cfg is null, not a mapping; set it whole, as in val_cfg=\{x: ...\}"),
        ("strategy.a.b=1", r"set it whole, as in strategy=\{type: ddp, a.b: ...\}"),
        ("hooks.2.x=1", "hooks has 2 items, counted from 0; there is no 2"),
        ("hooks.first.x=1", "hooks is a list; name an item of it by its number, as in hooks.0"),
        ("a=[1", "override 'a': expected ',' or ']'"),
        ("a={b: 1, b: 2}", "'b' is there already"),
        ("a=!!python/name:os.system", "is not plain data"),
        ("a=#1", "override 'a': '#' starts a comment"),
    ],
)
def test_a_wrong_override_says_what_to_write(override, message, load):
    with pytest.raises(ConfigError, match=message):
        load(override)


@pytest.mark.parametrize(
    "override", ["work_dir.x=1", "api_key=[canary", "logger={api_key: canary, api_key: 1}"]
)
def test_the_message_of_a_wrong_override_tells_no_secret(override, load):
    with pytest.raises(ConfigError) as caught:
        load(override)
    assert "canary" not in str(caught.value)
