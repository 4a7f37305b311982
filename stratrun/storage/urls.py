"""URLs: what they lead to, and what of them may be shown."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from stratrun.errors import ConfigError, MissingDependencyError, nearest

_CREDENTIALS = re.compile(r"(?<=://)[^/@]*@")
_QUERY = re.compile(r"\?.*", re.DOTALL)
# The same inside of a sentence, such as a library's own message.
_CREDENTIALS_IN_TEXT = re.compile(r"(?<=://)[^/\s?#]*@")
_QUERY_IN_TEXT = re.compile(r"(?<=[^\s?])\?[^\s\"'>)]*=[^\s\"'>)]*")
_USERINFO = re.compile(r"://([^/@]*)@")
# Options of a file system that tell nothing; any other text among them may be a secret.
_HARMLESS = re.compile(
    r"(endpoint|base|account)_?url|endpoint|host|region(_name)?|location|project|profile(_name)?|protocol|access"
    r"|signature_version|addressing_style|mode|acl|consistency|default_(cache_type|acl)|cache_(type|storage)"
)
_SHORTEST_SECRET = 4
_SECRET_VARIABLE = re.compile(
    r"SECRET|TOKEN|PASSW|CREDENTIAL|ACCESS_?KEY|API_?KEY|ACCOUNT_?KEY|_KEY$|_SAS", re.I
)
_SHORTEST_VARIABLE = 8
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
_S3 = frozenset({"s3", "s3a"})


def redacted(url: str) -> str:
    """A URL without what may be secret in it: user and password, query."""
    return _QUERY.sub("?***", _CREDENTIALS.sub("***@", url)) if "://" in url else url


class Secrets:
    """What must not show up in a message about one store."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        texts = [*_userinfo(url), *_texts(options)]
        self._known = {text for text in texts if len(text) >= _SHORTEST_SECRET}

    def hidden(self, text: str) -> str:
        """The text with ``***`` in place of each of them, and of those in the environment."""
        variables = {
            value
            for name, value in os.environ.items()
            if len(value) >= _SHORTEST_VARIABLE and _SECRET_VARIABLE.search(name)
        }
        for secret in sorted(self._known | variables, key=len, reverse=True):
            text = text.replace(secret, "***")
        return _QUERY_IN_TEXT.sub("?***", _CREDENTIALS_IN_TEXT.sub("***@", text))


def file_system(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The file system of fsspec behind a URL, and the path in it."""
    # Here, as importing the runner must not import what only a run needs.
    from fsspec import available_protocols
    from fsspec.core import url_to_fs

    scheme = url.partition("://")[0] if "://" in url else ""
    try:
        fs, root = url_to_fs(url, **_with_defaults(scheme, options))
    except ImportError as error:
        raise MissingDependencyError(
            f"{redacted(url)}: {scheme}:// needs a package that is not installed ({error})"
        ) from error
    except ValueError as error:
        if scheme in available_protocols():
            raise ConfigError(f"{redacted(url)} cannot be opened: {error}") from error
        raise ConfigError(
            f"{redacted(url)}: no storage is called {scheme!r}; {nearest(scheme, available_protocols())}"
        ) from error
    if scheme in _S3:
        fs.retries = 1
    return fs, str(root)


def protocols(fs: Any) -> frozenset[str]:
    named = fs.protocol
    return frozenset((named,) if isinstance(named, str) else named)


def has_folders(fs: Any) -> bool:
    """Whether a folder has to be made before a file can lie in it."""
    return protocols(fs).isdisjoint(_OBJECT_STORES)


def is_s3(fs: Any) -> bool:
    return not protocols(fs).isdisjoint(_S3)


def _with_defaults(scheme: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Have the library neither try again by itself, times over, nor remember listings."""
    made = dict(options)
    if scheme in _OBJECT_STORES:
        made.setdefault("use_listings_cache", False)
    if scheme in _S3:
        patience = {"retries": {"total_max_attempts": 1}, "connect_timeout": 10}
        made["config_kwargs"] = {**patience, **made.get("config_kwargs", {})}
    return made


def _texts(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, str(key).lower())
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, name)
    elif isinstance(value, str) and not _HARMLESS.fullmatch(name):
        yield value
    elif isinstance(value, str):
        yield from _userinfo(value)


def _userinfo(url: str) -> list[str]:
    """User and password of a URL, together and each, as written and as meant."""
    found = _USERINFO.search(url)
    parts = [found[1], *found[1].split(":")] if found else []
    return [*parts, *map(unquote, parts)]
