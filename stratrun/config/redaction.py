"""Secrets out of what is shown or saved."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from stratrun.config.placed import PlacedDict

HIDDEN = "***"

# Words of a name that say its value is a secret, whatever the value looks like.
_SECRET_WORD = re.compile(
    r"passwords?|passwd|passphrase|pwd|secrets?|credentials?|apikey|authorization|cookies?"
)
_SECRET_PAIR = re.compile(
    r"(?:api|access|private|secret|account|encryption|signing|ssh)_keys?|connection_string|auth_header"
)
# `token` is a secret in `hf_token`, not in `pad_token` or `num_memory_tokens`.
_TOKEN_OWNER = re.compile(
    r"access|api|auth|aws|bearer|bot|client|gh|github|gitlab|hf|hub|huggingface|id|identity|jwt|login"
    r"|neptune|oauth|personal|private|refresh|sas|secret|security|service|session|slack|user|wandb"
)
# Inside these, `key` is half of a credential.
_CREDENTIAL_GROUPS = frozenset({"storage_options", "client_kwargs", "auth", "credentials"})

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_USERINFO = re.compile(r"(?<=://)[^/\s?#]*@")
_QUERY = re.compile(
    r"([?&;](?:[\w-]*(?:token|signature|secret|password|credential|api[_-]?key|accountkey)|sig|key)=)[^&;\s]+",
    re.IGNORECASE,
)
_SHAPES = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\b(?:hf|gh[pousr]|github_pat|glpat|sk|pk|xox[abprs])[_-][A-Za-z0-9_-]{16,}"
    r"|\bAIza[0-9A-Za-z_-]{35}"
    r"|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"
    r"|(?<=\bBearer )\S+|(?<=\bBasic )[A-Za-z0-9+/=]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
# How special tokens of a vocabulary are written.
_SPECIAL = re.compile(r"<.*>|\[.*\]")
_RANDOM = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[A-Za-z0-9_.+/=-]{20,}")


def redacted(value: Any) -> Any:
    """A copy with ``***`` in place of what is a secret by its name or by its looks."""
    return _copy(value, "", ())


def hide_in_text(text: str) -> str:
    """The text without credentials in URLs and without strings that look like known keys."""
    text = _USERINFO.sub(f"{HIDDEN}@", text)
    text = _QUERY.sub(rf"\g<1>{HIDDEN}", text)
    return _SHAPES.sub(HIDDEN, text)


def _copy(value: Any, name: str, within: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        made = PlacedDict()
        made.places.update(getattr(value, "places", {}))
        for key, item in value.items():
            made[key] = (
                _hide(item) if _is_secret(key, item, within) else _copy(item, key, (*within, str(key)))
            )
        return made
    if isinstance(value, list):
        return [_copy(item, name, within) for item in value]
    if type(value) is tuple:
        return tuple(_copy(item, name, within) for item in value)
    return hide_in_text(value) if isinstance(value, str) else value


def _hide(value: Any) -> Any:
    """Every scalar of a secret value, however deep; what is empty or a switch tells nothing."""
    if isinstance(value, Mapping):
        made = PlacedDict({key: _hide(item) for key, item in value.items()})
        made.places.update(getattr(value, "places", {}))
        return made
    if isinstance(value, list | tuple):
        return [_hide(item) for item in value]
    return value if value is None or isinstance(value, bool) or value == "" else HIDDEN


def _is_secret(key: Any, value: Any, within: tuple[str, ...]) -> bool:
    words = [word.lower() for word in _WORDS.findall(str(key))]
    if any(map(_SECRET_WORD.fullmatch, words)):
        return True
    if any(_SECRET_PAIR.fullmatch("_".join(pair)) for pair in pairwise(words)):
        return True
    if words[-1:] == ["token"]:
        return _is_secret_token(words[:-1], value)
    return words == ["key"] and not _CREDENTIAL_GROUPS.isdisjoint(within)


def _is_secret_token(owner: list[str], value: Any) -> bool:
    if not isinstance(value, str) or _SPECIAL.fullmatch(value):
        return False
    owned = not owner or _TOKEN_OWNER.fullmatch(owner[-1])
    return bool(owned or _RANDOM.fullmatch(value))
