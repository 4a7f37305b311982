"""An S3 server in a process of its own, whose requests can be made to fail as those of real stores do.

`Store` is what tests hold. It is plain data: ranks and forked children may use it as well.
"""

import http.client
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

KEY, SECRET = "canary-access-key", "canary-secret-key"
BUCKET = "bucket"
KINDS = ("503", "500", "reset", "lost", "truncate", "incomplete")
"""What a request may meet. `lost`: it is done and not answered. `truncate`: half of the answer comes."""


@dataclass
class Faults:
    """What the server does to requests. The numbers of requests count from when the faults were set."""

    rate: float = 0.0
    """Of the requests fail, each in a way drawn from `kinds`."""
    kinds: tuple[str, ...] = ("503", "500", "reset", "truncate")
    seed: int = 0
    script: dict[int, str] = field(default_factory=dict)
    """The way in which the request of that number fails."""
    first: str = ""
    """The way in which the first request of each method and path fails."""
    deny_from: int | None = None
    """From this request on, all are answered by 403."""
    away_from: int | None = None
    """From this request on, connections are reset."""
    away_for: float | None = None
    """Seconds after which that ends; None for never."""
    hang_from: int | None = None
    """From this request on, none is ever answered."""
    hold_at: int | None = None
    """This one waits for `release`."""
    kill_at: int | None = None
    """When this one comes, `pid` is killed before it is done..."""
    kill_after: int | None = None
    """...or after it is done and before it is answered."""
    pid: int = 0
    methods: tuple[str, ...] = ()
    """Only requests of these methods count and fail; all when empty."""
    path: str = ""
    """Only requests whose path has this in it count and fail."""


@dataclass(frozen=True)
class Store:
    """A bucket of the server, empty at the start of each test."""

    port: int
    url: str
    options: dict[str, Any]

    @contextmanager
    def faults(self, **faults: Any) -> Iterator[None]:
        """Have requests fail within the block."""
        self.set_faults(**faults)
        try:
            yield
        finally:
            self.set_faults()

    def set_faults(self, **faults: Any) -> None:
        """Have requests fail from now on, as `Faults` says; without arguments none does."""
        self._ask("POST", "/_faults", asdict(Faults(**faults)))

    def log(self) -> list[tuple[str, str, str]]:
        """Method, path and fate of each request since the faults were set last, in their order."""
        return [tuple(entry) for entry in self._ask("GET", "/_log")]

    def wait_until_held(self) -> None:
        """Until the request comes that is held."""
        self._ask("GET", "/_held")

    def release(self) -> None:
        self._ask("POST", "/_release")

    def files(self) -> list[str]:
        """All objects, whatever faults are set."""
        return list(self._ask("GET", "/_keys"))

    def pending_uploads(self) -> int:
        """Multipart uploads that were neither finished nor aborted."""
        return int(self._ask("GET", "/_uploads"))

    def reset(self) -> None:
        self._ask("POST", "/_reset")

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        assert answer.status == 200, text
        return json.loads(text)


class Server:
    """The process. One for a session."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.stores"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        clean["S3_UPLOAD_PART_MIN_SIZE"] = "1024"  # so that little is enough for several parts
        self._process = subprocess.Popen(
            command, cwd=Path(__file__).parents[1], env=clean, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def store(self) -> Store:
        endpoint = {"endpoint_url": f"http://127.0.0.1:{self.port}", "region_name": "us-east-1"}
        url = f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}"
        return Store(self.port, url, {"key": KEY, "secret": SECRET, "client_kwargs": endpoint})

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


# What follows runs in the server.

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

_ERRORS = {
    "503": ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
    "500": ("500 Internal Server Error", "InternalError", "We encountered an internal error."),
    "incomplete": ("400 Bad Request", "IncompleteBody", "You did not provide the number of bytes specified."),
    "403": ("403 Forbidden", "AccessDenied", "Access Denied"),
}


class FaultyApplication:
    """Stands before the server and does to requests what `Faults` says."""

    def __init__(self, inner: Application) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._held = threading.Event()
        self._let_go = threading.Event()
        self._set(Faults())

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith("/_"):
            return self._control(environ, start_response)
        fate = self._fate(environ)
        faults = self.faults
        if fate == "hang" or fate == "hold":
            self._held.set()
            self._let_go.wait()
            fate = "reset" if fate == "hang" else ""
        if fate == "kill":
            os.kill(faults.pid, signal.SIGKILL)
            fate = "reset"
        if fate in _ERRORS:
            return self._refuse(environ, start_response, fate)
        if fate == "reset":
            return _reset(environ)
        if fate in ("lost", "kill_after", "truncate"):
            status, headers, body = self._done(environ)
            if fate == "kill_after":
                os.kill(faults.pid, signal.SIGKILL)
            if fate != "truncate" or len(body) < 2:
                return _reset(environ)
            start_response(status, headers)
            return _half(environ, body)
        return self._inner(environ, start_response)

    def _set(self, faults: Faults) -> None:
        with self._lock:
            self.faults = faults
            self._random = random.Random(faults.seed)
            self._count = 0
            self._since: float | None = None
            self._seen: set[tuple[str, str]] = set()
            self.entries: list[tuple[str, str, str]] = []
            # Whoever waits in a request of before is let go.
            self._let_go.set()
            self._held, self._let_go = threading.Event(), threading.Event()

    def _fate(self, environ: Environ) -> str:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with self._lock:
            fate, faults = "", self.faults
            if (not faults.methods or method in faults.methods) and faults.path in path:
                self._count += 1
                fate = self._decide(faults, (method, path))
            if fate == "truncate" and method != "GET":
                fate = "lost"
            if fate == "incomplete" and method not in ("PUT", "POST"):
                fate = ""  # without a body nothing of it can be missing
            self.entries.append((method, f"{path}?{environ['QUERY_STRING']}".rstrip("?"), fate or "done"))
            return fate

    def _decide(self, faults: Faults, request: tuple[str, str]) -> str:
        count = self._count
        fates = {"kill": faults.kill_at, "kill_after": faults.kill_after, "hold": faults.hold_at}
        for fate, at in fates.items():
            if count == at:
                return fate
        lasting = {"403": faults.deny_from, "hang": faults.hang_from}
        for fate, at in lasting.items():
            if at is not None and count >= at:
                return fate
        if faults.away_from is not None and count >= faults.away_from:
            self._since = self._since or time.monotonic()
            if faults.away_for is None or time.monotonic() - self._since < faults.away_for:
                return "reset"
        if faults.first and request not in self._seen:
            self._seen.add(request)
            return faults.first
        if fate := faults.script.get(count, ""):
            return fate
        return self._random.choice(faults.kinds) if self._random.random() < faults.rate else ""

    def _done(self, environ: Environ) -> tuple[str, Any, bytes]:
        """What the server answers, its work being done."""
        answer: list[Any] = []
        body = b"".join(self._inner(environ, lambda status, headers, *_: answer.extend((status, headers))))
        return answer[0], answer[1], body

    def _refuse(self, environ: Environ, start_response: Callable[..., Any], kind: str) -> Iterable[bytes]:
        status, code, message = _ERRORS[kind]
        _drain(environ)
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        start_response(status, headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    def _control(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        from moto.s3.models import s3_backends

        given = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        result: Any = None
        match environ["PATH_INFO"]:
            case "/_faults":
                settings = json.loads(given)
                settings["script"] = {int(number): kind for number, kind in settings["script"].items()}
                self._set(Faults(**settings))
            case "/_log":
                with self._lock:
                    result = list(self.entries)
            case "/_held":
                assert self._held.wait(20)
            case "/_release":
                self._let_go.set()
            case "/_reset":
                self._set(Faults())
                _reset_backend()
            case "/_keys":
                result = sorted(_backend_bucket(s3_backends).keys)
            case "/_uploads":
                result = len(_backend_bucket(s3_backends).multiparts)
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(result).encode()]


def _reset_backend() -> None:
    from moto.core.model_instances import reset_model_data
    from moto.s3.models import s3_backends

    for account in list(s3_backends.values()):
        for backend in list(account.values()):
            backend.reset()
    reset_model_data()
    _backend(s3_backends).create_bucket(BUCKET, "us-east-1")


def _backend(backends: Any) -> Any:
    from moto.core import DEFAULT_ACCOUNT_ID

    return backends[DEFAULT_ACCOUNT_ID]["aws"]


def _backend_bucket(backends: Any) -> Any:
    return _backend(backends).buckets[BUCKET]


def _drain(environ: Environ) -> None:
    left = int(environ.get("CONTENT_LENGTH") or 0)
    while left > 0 and (data := environ["wsgi.input"].read(min(left, 2**20))):
        left -= len(data)


def _reset(environ: Environ) -> Iterable[bytes]:
    connection: socket.socket = environ["werkzeug.socket"]
    # To linger for no time means to end with a reset.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


def _half(environ: Environ, body: bytes) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


def _serve() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *args: Any) -> None:
            pass

    application = FaultyApplication(DomainDispatcherApplication(create_backend_app))
    _reset_backend()
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()  # until whoever started this is gone
    os._exit(0)


if __name__ == "__main__":
    _serve()
