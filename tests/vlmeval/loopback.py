"""A server on loopback that answers as a test tells it to: a stand-in for every way a real one can fail."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from vlmeval.models.api import Api
from vlmeval.task import Item, Response

LIMITS = {"answer": 16, "text": 256}


def said(text: Any = "Yes", **choice: Any) -> dict[str, Any]:
    """A completion as OpenAI's servers give it."""
    message = {"role": "assistant", "content": text}
    tokens = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    choice = {"index": 0, "finish_reason": "stop", **choice}
    choice["message"] = {**message, **choice.get("message", {})}
    return {"id": "x", "object": "chat.completion", "model": "served", "choices": [choice], "usage": tokens}


class Loopback:
    """``respond(body, number)`` gives what a chat request gets: a JSON value, bytes, (status, either), (status, either,
    headers), or a function of the request handler that does anything else. Request 0 is the probe of ``load``.

    Attributes:
        asked: bodies of the chat requests.
        seen: (method, path, headers) of all requests.
        most: the most requests that were in work at once.
    """

    def __init__(self, respond: Callable[[dict[str, Any], int], Any], models: Any = None) -> None:
        self.respond, self.models = respond, {"data": [{"id": "m"}]} if models is None else models
        self.asked: list[dict[str, Any]] = []
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.most = self._now = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing listens any more."""
        self._http.shutdown()
        self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
            server_version, sys_version = "loopback/1", ""

            def do_GET(self) -> None:
                outer.seen.append(("GET", self.path, dict(self.headers)))
                listed = outer.models() if callable(outer.models) else outer.models
                self._send(listed if self.path.split("?")[0] == "/v1/models" else (404, b"not here"))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    number = len(outer.asked)
                    outer.asked.append(body)
                    outer.seen.append(("POST", self.path, dict(self.headers)))
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                try:
                    answer = outer.respond(body, number) if self.path.startswith("/v1/chat") else (404, b"not here")
                    answer(self) if callable(answer) else self._send(answer)
                finally:
                    with outer._lock:
                        outer._now -= 1

            def _send(self, answer: Any) -> None:
                status, value, headers = 200, answer, {}
                if isinstance(answer, tuple):
                    status, value, headers = (*answer, {})[:3]
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                try:
                    self.send_response(status)
                    for name, text in {"Content-Type": "application/json", **headers}.items():
                        self.send_header(name, text)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # the client did not wait
                    self.close_connection = True

            def log_message(self, *args: Any) -> None:
                pass

        return Handler


def hang(handler: BaseHTTPRequestHandler) -> None:
    """Say nothing for longer than anybody waits."""
    time.sleep(5)
    handler.close_connection = True


def drip(handler: BaseHTTPRequestHandler) -> None:
    """A byte now and then: no single read ever takes long."""
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:
        pass
    handler.close_connection = True


def cut(handler: BaseHTTPRequestHandler) -> None:
    """Half a body."""
    handler.send_response(200)
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def slam(handler: BaseHTTPRequestHandler) -> None:
    """Close without a word."""
    handler.close_connection = True


def item(ident: int | str = 1, prompt: str = "Is it red?", images: tuple[str, ...] = (), **more: Any) -> Item:
    return Item(ident, prompt, images, None, ("all",), **more)


def questions(count: int) -> list[Item]:
    return [item(number, f"question {number}") for number in range(count)]


def api(there: Loopback, **options: Any) -> Api:
    return Api(there.url, options.pop("model", "m"), **{"images": None, "max_new_tokens": LIMITS, **options})


def answers(model: Api, items: list[Item], done: set[Any] = frozenset()) -> list[Response]:
    return sorted((one for batch in model.answer(items, done) for one in batch), key=lambda one: str(one.id).zfill(5))


def one(respond: Any, **options: Any) -> Response:
    """What a single question gets after an ordinary probe."""
    with Loopback(lambda body, number: said() if number == 0 else respond) as there:
        (found,) = answers(api(there, **{"retries": 1, **options}), [item()])
    return found
