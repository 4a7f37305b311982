import json

import pytest

from stratrun.config import Config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("api_key", "canary"),
        ("apiKey", "canary"),
        ("WANDB_API_KEY", "canary"),
        ("wandb-api-key", "canary"),
        ("apikey", "canary"),
        ("token", "canary"),
        ("hf_token", "canary"),
        ("HFToken", "canary"),
        ("auth_token", "canary"),
        ("my_token", "canary0123456789ABCDEFG"),
        ("password", "canary"),
        ("db_passwd", "canary"),
        ("aws_secret_access_key", "canary"),
        ("secret", "canary"),
        ("client_secret", "canary"),
        ("private_key", "canary"),
        ("connection_string", "canary"),
        ("authorization", "canary"),
        ("credentials", {"user": "canary", "more": ["canary", {"x": "canary"}]}),
        ("passwords", ["canary"]),
        ("storage_options", {"key": "canary", "more": {"key": "canary"}}),
        ("url", "https://canary@host/path"),
        ("url", "postgresql://user:canary@host:5432/db"),
        ("url", "s3://key:can@ary:canary@bucket/path"),
        ("url", "https://host/file?X-Amz-Signature=canary&x=1"),
        ("url", "https://host/file?sv=1&sig=canary"),
        ("url", "https://host/?a=1&access_token=canary"),
        ("text", "AccountName=x;AccountKey=canary;x"),
        ("text", "Authorization: Bearer canary"),
        ("text", "AKIACANARYCANARYCANA"),
        ("text", "use hf_canarycanarycanary here"),
        ("text", "ghp_canary0123456789canary"),
        ("text", "sk-canary0123456789canary"),
        ("text", "eyJcanarycanary.canary.canary"),
        ("text", "-----BEGIN RSA PRIVATE KEY-----\ncanary\n-----END RSA PRIVATE KEY-----"),
        ("args", ["--x", "s3://a:canary@b"]),
        ("pair", ("https://canary@host",)),
    ],
)
def test_a_secret_is_in_nothing_that_is_shown_or_written(name, value, tmp_path):
    config = Config({"deep": [{"er": {name: value}}]})
    config.dump(tmp_path / "c.yaml")
    config.dump(tmp_path / "c.json")
    shown = [repr(config), str(config), f"{config.deep[0]}", config.to_yaml(), config.pretty()]
    shown += [repr(config.redacted()), *(path.read_text() for path in tmp_path.iterdir())]
    shown.append(json.dumps(config.redacted()))
    assert not any("canary" in text.lower() for text in shown)
    assert all("***" in text for text in shown)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_memory_tokens", 4),
        ("max_tokens", 128),
        ("user_tokens", "one two"),
        ("pad_token", "<pad>"),
        ("bos_token", "[CLS]"),
        ("user_token", "<|user|>"),
        ("image_token", "IMG"),
        ("token_embedding", "learned"),
        ("use_auth_token", True),
        ("token", None),
        ("tokenizer", "bert-base-uncased"),
        ("password", ""),
        ("key", "loss"),
        ("monkey", "x"),
        ("keys", ["a", "b"]),
        ("key_dim", 64),
        ("secretary", "x"),
        ("url", "https://host:8080/a?b=c&keys=d"),
        ("work_dir", "s3://bucket/runs/a@b"),
        ("text", "mail me@host"),
        ("text", "0123456789abcdef0123456789abcdef01234567"),
        ("name", "sk-learn"),
    ],
)
def test_what_only_looks_like_a_secret_stays(name, value):
    assert Config({name: value}).redacted() == {name: value}


def test_what_surrounds_a_secret_stays():
    config = Config(url="s3://key:pw@bucket/x?versionId=3&sig=abc&y=1", logger={"type": "W", "api_key": "a"})
    assert config.redacted() == {
        "url": "s3://***@bucket/x?versionId=3&sig=***&y=1",
        "logger": {"type": "W", "api_key": "***"},
    }


def test_redacting_keeps_places_types_and_the_original(tmp_path):
    (tmp_path / "c.yaml").write_text("a:\n  token: x\ncredentials:\n  user: y\n")
    config = Config.load(tmp_path / "c.yaml")
    hidden = config.redacted()
    assert type(hidden) is type(hidden.a) is Config
    assert hidden.places == config.places and hidden.a.places == config.a.places
    assert hidden.credentials.places == config.credentials.places
    assert config == {"a": {"token": "x"}, "credentials": {"user": "y"}}


def test_secrets_are_written_only_when_asked_for(tmp_path):
    config = Config(api_key="canary")
    config.dump(tmp_path / "c.json", secrets=True)
    assert Config.load(tmp_path / "c.json") == config
    assert config.to_yaml(secrets=True) == "api_key: canary\n"


def test_the_text_of_an_object_is_searched_too():
    class Folder:
        def __repr__(self):
            return "Folder('s3://a:canary@b')"

    assert Config(folder=Folder()).to_yaml() == "folder: Folder('s3://***@b')\n"
    assert "canary" not in repr(Config(folder=Folder()))
