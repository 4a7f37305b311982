"""One operation on a store, insisted on, whose failure becomes an error without secrets."""

import errno
import logging
import re
from collections.abc import Callable
from typing import NoReturn, TypeVar

from stratrun.errors import ConfigError, StorageError
from stratrun.storage.retry import ANSWERS, Kind, Retry, answer, chain
from stratrun.storage.urls import Secrets

T = TypeVar("T")

_LOG = logging.getLogger("stratrun.storage")
_WORTH_A_WARNING = 4

_NOT_ALLOWED = "this user may not; change the permissions or name another place"
_ADVICE = {
    errno.ENOSPC: "make room or name another place",
    errno.EDQUOT: "the quota is used up; make room or name another place",
    errno.EROFS: "it can only be read; name another place",
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
}
# What libraries say of options that they pass on to one another, and of which one knows nothing.
_UNKNOWN_OPTION = re.compile(r"unexpected keyword argument '(\w+)'")


class Guard:
    """Runs the operations of one store."""

    def __init__(
        self,
        retry: Retry,
        kind: Callable[[BaseException], Kind],
        secrets: Secrets,
        shown: Callable[[str], str],
    ) -> None:
        """`shown` makes a URL of a path in the store."""
        self.retry = retry
        self._kind = kind
        self._secrets = secrets
        self._shown = shown

    def __call__(
        self,
        operation: str,
        at: str,
        work: Callable[[float], T],
        since: Callable[[], float] | None = None,
        once: bool = False,
    ) -> T:
        """The result of `work`, which is told how many seconds it has.

        `operation` says in a word what it does. `since` tells when something last went forward: the
        deadline counts from there. `once`: it must not be tried again.
        """
        kind = _never if once else self._kind
        return self.retry.run(
            work,
            kind,
            lambda *what: self._report(operation, at, *what),
            lambda *what: self._tell(operation, at, *what),
            since,
        )

    def _report(self, operation: str, at: str, error: Exception, tried: str) -> NoReturn:
        url = self.url(at)
        cause = self._presentable(error)
        for link in chain(error):
            if isinstance(link, TypeError) and (found := _UNKNOWN_OPTION.search(str(link))):
                raise ConfigError(
                    f"{url}: storage_options have {found[1]!r}, which the file system does not take "
                    f"({self._text(link)}); they are those of checkpoint_cfg=dict(storage_options=...), "
                    "of load_from=dict(storage_options=...) or of --storage-option"
                ) from cause
        no_bucket = any(answer(link)[0] == "NoSuchBucket" for link in chain(error))
        if isinstance(error, ANSWERS) and not no_bucket:
            if cause is error:
                raise error
            raise next(kind for kind in ANSWERS if isinstance(error, kind))(f"{url}: {cause}") from cause
        text = "there is no such bucket" if no_bucket else self._text(error)
        number = error.errno if isinstance(error, OSError) else None
        advice = f"; {_ADVICE[number]}" if number in _ADVICE else ""
        raise StorageError(f"{operation} {url} failed: {text}{advice} ({tried})", number) from cause

    def _tell(self, operation: str, at: str, error: Exception, attempt: int, pause: float) -> None:
        # Single failures are daily business of a store; who watches a run that stands still wants to know.
        level = logging.WARNING if attempt >= _WORTH_A_WARNING else logging.DEBUG
        text, url = self._text(error), self.url(at)
        _LOG.log(level, "%s %s failed %d times: %s; next try in %.1f s", operation, url, attempt, text, pause)

    def url(self, at: str) -> str:
        return self._secrets.hidden(self._shown(at))

    def _text(self, error: BaseException) -> str:
        if isinstance(error, OSError) and error.errno is not None and error.strerror:
            # Without the path, which the URL says already.
            text = f"[{errno.errorcode.get(error.errno, error.errno)}] {error.strerror}"
        else:
            text = f"{type(error).__name__}: {error}".removesuffix(": ")
        return self._secrets.hidden(text.rstrip("."))

    def _presentable(self, error: BaseException) -> BaseException:
        """The error, or a stand-in when it or what caused it gives a secret away."""
        if all(self._secrets.hidden(str(link)) == str(link) for link in chain(error)):
            return error
        return OSError(self._text(error))


def _never(error: BaseException) -> Kind:
    return Kind.FINAL
