"""One OpenAI-compatible server: where it is, the key for it, and requests that are tried again where that can help."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from vlmdata.errors import ConfigError
from vlmeval.models.completions import NoAnswer, first_line, message_of, parse

if TYPE_CHECKING:
    import ssl

    import httpx

__all__ = ["Reply", "Server", "Stopped", "Unanswered"]

FIRST_PAUSE = 1.0
"""Seconds before the first new attempt; each further pause is twice as long, up to ``LONGEST_PAUSE``."""

LONGEST_PAUSE = 60.0
LONGEST_WISH = 300.0
"""Most seconds that a server's Retry-After is obeyed."""

_AGAIN = frozenset({408, 409, 425, 429})
_MOST_BYTES = 64 << 20
_CHAT, _MODELS = "chat/completions", "models"


class Unanswered(Exception):
    """A request got no usable reply, after all attempts where new ones could help; says why in one line.

    Attributes:
        status: HTTP status, where there was a reply.
        lost: nobody answered, or a gateway for nobody: the server may be gone.
    """

    def __init__(self, reason: str, *, status: int | None = None, lost: bool = False) -> None:
        """Keep the reason and what kind it is."""
        super().__init__(reason)
        self.status, self.lost = status, lost


class Stopped(ConfigError):
    """The server refuses every request: the key, the model's name, the address, or the account's means are wrong."""


class _Again(Exception):
    """A failure that may pass.

    Attributes:
        nobody: nothing connected, or nothing came of it in time.
        stale: the connection ended before the reply began, as one does that the server had let go of.
        wish: seconds the server wants to be left alone.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int | None = None,
        lost: bool = False,
        nobody: bool = False,
        stale: bool = False,
        wish: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.status, self.lost, self.wish = reason, status, lost, wish
        self.nobody, self.stale = nobody, stale


@dataclass(frozen=True, slots=True)
class Reply:
    """A successful reply.

    Attributes:
        json: its parsed body.
        seconds: of the attempt that succeeded.
        attempts: how many it took.
    """

    json: Any
    seconds: float
    attempts: int


class Server:
    """An endpoint. Requests are made inside ``open()``.

    The key goes out as a bearer token; a name and password in the address go out instead of it (basic authentication).

    Attributes:
        base: what ``/models`` and ``/chat/completions`` are appended to.
        software: its ``Server`` header.
    """

    def __init__(self, endpoint: str, *, key_env: str, concurrency: int, retries: int, timeout: float) -> None:
        """Check the address and the key; nothing is asked.

        Raises:
            ConfigError: the address or the key cannot be one.
        """
        import httpx

        self.retries, self.timeout, self.concurrency, self.key_env = retries, timeout, concurrency, key_env
        self.software: str | None = None
        self._key = os.environ.get(key_env, "").strip() if key_env else ""
        if not (self._key.isascii() and self._key.isprintable()) or " " in self._key:
            raise ConfigError(f"the key in the environment variable {key_env} has characters that no key has")
        try:
            url = httpx.URL(endpoint.strip())
        except (httpx.InvalidURL, ValueError, TypeError):
            raise ConfigError(f"--endpoint is no web address; expected one like {_EXAMPLE}") from None
        if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65535:
            raise ConfigError(f"--endpoint {_shown(url)} is no web address; expected one like {_EXAMPLE}")
        path = url.path.rstrip("/").removesuffix(f"/{_CHAT}").removesuffix(f"/{_MODELS}").rstrip("/")
        self._bases = [url.copy_with(path=part, fragment=None) for part in dict.fromkeys(_paths(path))]
        self.base: httpx.URL = self._bases[0]
        self._closing: AsyncExitStack | None = None
        self._idle: list[httpx.AsyncClient] = []
        self._rested = 0.0

    @property
    def shown(self) -> str:
        """The address without name, password and query."""
        return _shown(self.base)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Connections to it, for the event loop that runs now."""
        async with AsyncExitStack() as closing:
            self._closing = closing
            try:
                yield
            finally:
                self._closing = None
                self._idle.clear()

    async def _connection(self) -> httpx.AsyncClient:
        """A client that nothing uses now. Each has one connection: the time httpx takes to find one grows with them."""
        import httpx

        assert self._closing is not None, "inside open()"
        if self._idle:
            return self._idle.pop()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        client = httpx.AsyncClient(
            headers={**headers, "User-Agent": "vlmeval", "Content-Type": "application/json"},
            # Idle connections are let go before the usual server (5 s) does, which would look like a failure.
            limits=httpx.Limits(max_connections=1, keepalive_expiry=3.0),
            timeout=None,
            verify=_certificates(),
            trust_env=not _loopback(self.base.host),
        )
        return await self._closing.enter_async_context(client)

    async def models(self, *, needed: bool) -> list[dict[str, Any]] | None:
        """What the server lists at ``/models``, which also settles its base address; None where it has no list.

        Args:
            needed: nothing can be asked without the list. A key may be good for questions and not for the list.

        Raises:
            Stopped: nobody is there; or the key is refused and the list is needed.
        """
        fault: Unanswered | None = None
        for base in self._bases:
            try:
                reply = await self._tried("GET", base, _MODELS, None, seconds=min(self.timeout, 30.0))
            except Unanswered as error:
                if error.lost:
                    raise Stopped(f"no server answers at {_shown(base)}: {error}; is it running?") from None
                fault = error
                continue
            listed = reply.json.get("data") if isinstance(reply.json, dict) else reply.json
            if isinstance(listed, list):
                self.base = base
                return [row for row in listed if isinstance(row, dict) and isinstance(row.get("id"), str)]
        if needed and fault is not None and fault.status in (401, 403):
            raise Stopped(self._refused_key(fault))
        return None

    async def answers(self) -> bool:
        """Whether anything but a gateway answers there now."""
        try:
            await self._tried("GET", self.base, _MODELS, None, seconds=min(self.timeout, 10.0), retries=0)
        except Unanswered as error:
            return not error.lost
        return True

    async def complete(self, body: Mapping[str, Any]) -> Reply:
        """Ask for a chat completion.

        Raises:
            Unanswered: this request has no reply.
            Stopped: no request will have one: key, model name, address or the account's means.
        """
        try:
            # As ASCII even half a surrogate pair can be sent.
            sent = json.dumps(body).encode("ascii")
            return await self._tried("POST", self.base, _CHAT, sent, seconds=self.timeout)
        except Unanswered as error:
            if error.status in (401, 403):
                raise Stopped(self._refused_key(error)) from None
            if error.status in (402, 404, 405) or (error.status or 0) in range(300, 400):
                raise Stopped(f"{self.shown}/{_CHAT} with model {body.get('model')!r}: {error}") from None
            raise

    async def _tried(
        self,
        method: str,
        base: httpx.URL,
        path: str,
        body: bytes | None,
        *,
        seconds: float,
        retries: int | None = None,
    ) -> Reply:
        most = 1 + (self.retries if retries is None else retries)
        attempts, stale = 1, False
        while True:
            await asyncio.sleep(max(0.0, self._rested - time.monotonic()))
            started = time.monotonic()
            try:
                found = await self._once(method, base, path, body, seconds)
                return Reply(found, time.monotonic() - started, attempts)
            except _Again as fault:
                if fault.stale and not stale:
                    stale = True
                    continue
                stale = False
                # At the start a wrong address is likelier than a late server; one that loads its model says 503.
                hopeless = body is None and (fault.nobody or fault.status not in (None, 429, 503))
                if attempts >= most or hopeless:
                    tries = f" ({attempts} attempts)" if attempts > 1 else ""
                    raise Unanswered(fault.reason + tries, status=fault.status, lost=fault.lost) from None
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempts - 1)) * random.uniform(0.5, 1.0)
                if fault.wish is not None:
                    # All requests wait: whoever is told to slow down need not be told once per request.
                    self._rested = max(self._rested, time.monotonic() + fault.wish)
                await asyncio.sleep(pause if fault.wish is None else max(pause, fault.wish))
                attempts += 1

    async def _once(self, method: str, base: httpx.URL, path: str, body: bytes | None, seconds: float) -> Any:
        """One attempt; the whole of it, connecting included, takes no longer than ``seconds``."""
        import httpx

        client = await self._connection()
        url = base.copy_with(path=f"{base.path.rstrip('/')}/{path}")
        begun = False
        try:
            async with asyncio.timeout(seconds):
                async with client.stream(method, url, content=body) as response:
                    begun = True
                    raw = await _body(response)
        except TimeoutError:
            raise _Again(f"no reply within {seconds:g} s", lost=True, nobody=True) from None
        except httpx.DecodingError as error:
            raise _Again(f"the reply cannot be unpacked: {first_line(str(error))}") from None
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            said = first_line(self._clean(str(error).encode()).decode()) or "the connection broke"
            nobody = isinstance(error, httpx.ConnectError)
            reason = f"no connection: {type(error).__name__}: {said}"
            raise _Again(reason, lost=True, nobody=nobody, stale=not nobody and not begun) from None
        finally:
            self._idle.append(client)
        self.software = response.headers.get("server", self.software)
        return self._checked(response, raw)

    def _checked(self, response: httpx.Response, raw: bytes) -> Any:
        """The parsed body of a reply that is none of the errors a server can give."""
        status, hidden = response.status_code, self._clean(raw)
        if 200 <= status < 300:
            try:
                found = parse(raw)
            except NoAnswer:
                raise _Again(_unreadable(hidden), status=status) from None
            error = found.get("error") if isinstance(found, dict) else None
            if not error:
                return found
            # Some gateways put the status of the server behind them into a reply of status 200.
            code = error.get("code") if isinstance(error, dict) else None
            status = code if type(code) is int and 400 <= code < 600 else 400
        said = _said(hidden) or first_line(response.headers.get("location", "")) or "nothing said"
        reason = f"HTTP {status}: {said}"
        if status in _AGAIN or status >= 500:
            if b"insufficient_quota" in raw[:10000]:
                raise Unanswered(reason, status=402)
            raise _Again(reason, status=status, lost=status in (502, 503, 504), wish=_wish(response.headers))
        raise Unanswered(reason, status=status)

    def _clean(self, text: bytes) -> bytes:
        """Without key and password, should a server repeat them; what is shorter than four letters is no secret."""
        for secret in (self._key, self.base.password):
            text = text.replace(secret.encode(), b"***") if len(secret) > 3 else text
        return text

    def _refused_key(self, fault: Unanswered) -> str:
        held = f"refuses the key in {self.key_env}" if self._key else f"wants a key, and {self.key_env} is not set"
        return f"{self.shown} {held}: {fault}; key_env names the environment variable that holds it"


_EXAMPLE = "http://localhost:8000/v1"


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Trusted certificates, read once: that takes longer than a question on loopback."""
    import httpx

    return httpx.create_ssl_context()


def _paths(path: str) -> list[str]:
    """Base paths to be tried: as given, with and without the usual ``/v1``."""
    if not path:
        return ["/v1", "/"]
    return [path] if path.endswith("/v1") else [path, f"{path}/v1"]


def _shown(url: httpx.URL) -> str:
    return str(url.copy_with(username=None, password=None, query=None, fragment=None)).rstrip("/")


def _loopback(host: str) -> bool:
    """Whether it is this machine, which no proxy of the environment leads to."""
    return host == "localhost" or host == "::1" or host.startswith("127.")


async def _body(response: httpx.Response) -> bytes:
    parts, size = [], 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            raise _Again(f"the reply is longer than {_MOST_BYTES >> 20} MiB")
    return b"".join(parts)


def _unreadable(raw: bytes) -> str:
    """Why it is not JSON."""
    try:
        parse(raw)
    except NoAnswer as fault:
        return str(fault)
    return "the reply is not JSON"


def _said(raw: bytes) -> str:
    """What an error's body says: its message where it is JSON of a known form, else its text."""
    try:
        return message_of(json.loads(raw)) or first_line(raw.decode(errors="replace"))
    except (ValueError, RecursionError):
        return first_line(raw.decode(errors="replace"))


def _wish(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, given as a number or a date (RFC 9110, 10.2.3); None without a usable one."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except (ValueError, TypeError, OverflowError):
            return None
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()
    return min(max(seconds, 0.0), LONGEST_WISH) if seconds == seconds else None
