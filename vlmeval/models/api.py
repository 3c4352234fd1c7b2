"""A model behind an OpenAI-compatible server: vLLM, ``transformers serve``, SGLang, llama.cpp, Ollama, hosted ones.

``POST /chat/completions`` with temperature 0 and pictures as data URLs; nothing of the model is known here but what the
server says of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DataError, MissingError, choices
from vlmeval.models.completions import Completion, NoAnswer, probabilities, read
from vlmeval.models.dialect import Dialect, messages
from vlmeval.models.flight import Background, completed
from vlmeval.models.picture_urls import PictureUrls
from vlmeval.models.server import Reply, Server, Stopped, Unanswered
from vlmeval.task import Item, Response

__all__ = ["ANSWERS", "Api"]

ANSWERS = ("generate", "logits", "both")

_LOST_IN_A_ROW = 8
_REFUSED_FROM_THE_START = 32
_MOST_SEEN = 20
_GO_ON = "the answers so far are kept: go on with --resume"

# 64x64 pixels of white, PNG: large enough for every image processor.
_WHITE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAAS0lEQVR42u3PMQ0AAAwDoPo33UrYvQQckD4XAQEBAQEBAQEBAQEB"
    "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAYHLAMpT0sIcNbcEAAAAAElFTkSuQmCC"
)


class Api:
    """A served model, asked over HTTP when the first answer is wanted.

    Attributes:
        name: the model's, as the server knows it.
    """

    def __init__(
        self,
        endpoint: str,
        model: str | None,
        *,
        images: Path | None,
        max_new_tokens: Mapping[str, int],
        answers: str = "generate",
        prompt_suffix: str = "",
        concurrency: int = 8,
        retries: int = 5,
        timeout: float = 120.0,
        key_env: str = "OPENAI_API_KEY",
        max_image_side: int | None = None,
    ) -> None:
        """Check what can be checked without asking the server.

        Args:
            endpoint: address of the server; ``/v1`` is added where it is missing.
            model: its name there; None takes the only one the server lists.
            images: the folder the items' image names are below, or the converted dataset that holds them; None where
                the items show none.
            max_new_tokens: limit of new tokens by kind of item.
            answers: ``generate`` takes the generated text; ``logits`` decides items that have ``choices`` by the
                probabilities of their first token; ``both`` generates and records those probabilities.
            prompt_suffix: added to every prompt after a line break.
            concurrency: requests at a time.
            retries: new attempts after a failure that may pass.
            timeout: seconds one attempt may take.
            key_env: environment variable that holds the key; it need not be set for servers that want none.
            max_image_side: longer side in pixels that pictures are scaled down to before they are sent.

        Raises:
            ConfigError: the address, the key or a number cannot be.
        """
        if answers not in ANSWERS:
            raise ConfigError(f"--answers is {answers!r}, expected one of {choices(ANSWERS)}")
        if min(max_new_tokens.values()) < 1:
            raise ConfigError(f"an answer needs at least 1 new token, got {min(max_new_tokens.values())}")
        if concurrency < 1 or retries < 0 or not 0 < timeout < 1e6:
            wanted = "concurrency of at least 1, retries of at least 0 and a timeout above 0 seconds are needed"
            raise ConfigError(f"{wanted}, got {concurrency}, {retries} and {timeout:g}")
        self.server = Server(endpoint, key_env=key_env, concurrency=concurrency, retries=retries, timeout=timeout)
        self.model, self.images, self.answers, self.prompt_suffix = model, images, answers, prompt_suffix
        self.max_new_tokens = dict(max_new_tokens)
        self.pictures = PictureUrls(images, max_image_side)
        self.dialect = Dialect()
        self.loaded = False
        self._known: dict[str, Any] = {}
        self._seen: dict[str, list[str]] = {"system_fingerprints": [], "reported_models": []}

    @property
    def name(self) -> str:
        """The model's name, the server's address while it is not known."""
        return self.model or self.server.shown

    def describe(self) -> dict[str, Any]:
        """Everything that can change an answer; what the server says of its model is known once it was asked.

        The address is not part of it: the same model may be served elsewhere when a run goes on.
        """
        sent = "JPEG, PNG, WebP and GIF as they are; turned, transparent, animated and other pictures as PNG"
        known: dict[str, Any] = {
            "kind": "api",
            "prompt_suffix": self.prompt_suffix,
            "answers": self.answers,
            "max_new_tokens": self.max_new_tokens,
            "pictures": sent,
            "max_image_side": self.pictures.max_side,
        }
        if self.model:
            known["model"] = self.model
        if self.loaded:
            known |= self._known | self.dialect.describe(logprobs=self.answers != "generate")
        return known

    def environment(self) -> dict[str, Any]:
        """Where and how it is asked: recorded, never compared."""
        import httpx

        server = self.server
        return {
            "endpoint": server.shown,
            "server": server.software,
            **{name: list(values) for name, values in self._seen.items()},
            "concurrency": server.concurrency,
            "retries": server.retries,
            "timeout": server.timeout,
            "versions": {"httpx": httpx.__version__},
        }

    def load(self) -> None:
        """Find the server and the model, and ask one small question in the way all will be asked.

        Raises:
            ConfigError: nobody is there; the key, the model or the way of asking is refused; the server gives no first
                token's probabilities and they are wanted.
        """
        if not self.loaded:
            with Background() as background:
                background.start(self._load()).result()
            self.loaded = True

    def answer(self, items: Sequence[Item], done: Container[int | str] = ()) -> Iterator[list[Response]]:
        """Answer the items that are not done, several at a time, in lists of those that are ready.

        Questions on one image are asked one after the other, so that a server that keeps prefixes finds them. An item
        that alone cannot be answered is a Response with an ``error``.

        Raises:
            ConfigError: an item ranks whole answers, which servers give no likelihood of; the server is gone, refuses
                the key or the model, or refuses everything.
        """
        ranked = next((item for item in items if item.kind == "choice"), None)
        if ranked is not None:
            raise ConfigError(
                f"item {ranked.id} ranks whole answers by their likelihood, which a server gives for its own answers "
                "only: give --model with a folder or hub id instead of --endpoint"
            )
        rank = {cluster: place for place, cluster in enumerate(dict.fromkeys(item.cluster for item in items))}
        todo = sorted((item for item in items if item.id not in done), key=lambda item: rank[item.cluster])
        if not todo:
            return iter(())
        self.load()
        watch = _Watch(self.server, answered=len(items) - len(todo))

        async def ask(item: Item) -> Response:
            return await self._one(item, watch)

        return completed(todo, ask, concurrency=self.server.concurrency, around=self.server.open)

    async def _load(self) -> None:
        async with self.server.open():
            listed = await self.server.models(needed=self.model is None)
            names = [row["id"] for row in listed or []]
            self.model = self.model or _only(names, self.server.shown)
            completion = await self._probe(names)
        row = next((row for row in listed or [] if row["id"] == self.model), {})
        self._known = {name: row[name] for name in ("root", "owned_by") if isinstance(row.get(name), str)}
        self._known["reported_model"] = completion.model
        self._note(completion)

    async def _probe(self, names: Sequence[str]) -> Completion:
        """Ask a question of the kind that will be asked, and settle the parameters the server takes."""
        shown = (_WHITE,) if self.images is not None else ()
        item = Item("probe", "Is it white? Answer yes or no.", shown, None, (), "answer", choices=("Yes", "No"))
        listed = f"; it lists {choices(names[:10])}" if names and self.model not in names else ""
        while True:
            body = self._body(item, lambda name: name)
            try:
                reply = await self.server.complete(body)
                break
            except Stopped as fault:
                raise Stopped(f"{fault}{listed}") from None
            except Unanswered as fault:
                if fault.status is not None and not fault.lost and self.dialect.adapt(str(fault)):
                    continue
                kind = "a question about a picture" if shown else "a question"
                wanted = " with logprobs" if "logprobs" in body else ""
                refuses = f"{self.server.shown} does not answer {kind}{wanted} to model {self.model!r}: {fault}"
                raise ConfigError(f"{refuses}{listed}") from None
        try:
            completion = read(reply.json, silent=True)
        except NoAnswer as fault:
            raise ConfigError(f"{self.server.shown} is no OpenAI-compatible server: {fault}") from None
        if self.answers != "generate" and completion.first is None:
            raise ConfigError(
                f"{self.server.shown} gives no logprobs, from which --answers {self.answers} reads: take --answers "
                "generate, or a server that gives them (vLLM does, transformers serve does not)"
            )
        return completion

    def _body(self, item: Item, url: Callable[[str], str]) -> dict[str, Any]:
        """The request for an item's answer."""
        logprobs = self.answers != "generate" and bool(item.choices)
        limit = self.max_new_tokens["text" if item.kind == "text" else "answer"]
        if logprobs and self.answers == "logits":
            limit = 1
        return self.dialect.body(self.model, messages(item, url, self.prompt_suffix), limit, logprobs=logprobs)

    async def _one(self, item: Item, watch: _Watch) -> Response:
        try:
            body = await asyncio.to_thread(self._body, item, self.pictures)
        except MissingError as error:
            return Response(item.id, None, error=f"image missing: {error}")
        except DataError as error:
            return Response(item.id, None, error=str(error))
        try:
            reply = await self.server.complete(body)
        except Unanswered as error:
            await watch.failed(error)
            return Response(item.id, None, error=str(error))
        except Stopped as error:
            raise Stopped(f"{error}; {_GO_ON}") from None
        try:
            response = self._response(item, reply)
        except NoAnswer as error:
            await watch.failed(Unanswered(str(error)))
            return Response(item.id, None, error=str(error))
        watch.answered()
        return response

    def _response(self, item: Item, reply: Reply) -> Response:
        """The answer in a reply.

        Raises:
            NoAnswer: there is none.
        """
        reads = self.answers != "generate" and bool(item.choices)
        decides = reads and self.answers == "logits"
        completion = read(reply.json, silent=decides)
        text, detail = completion.text, dict[str, Any]()
        if reads:
            if completion.first is None:
                raise NoAnswer("the reply has no logprobs")
            found = probabilities(completion.first, item.choices)
            detail["probabilities"] = found
            absent = [word for word, mass in found.items() if not mass]
            if absent:
                detail["not_among_likeliest"] = absent
            if decides and len(absent) < len(found):
                text = max(found, key=found.__getitem__)
        if completion.truncated and not decides:
            detail["truncated"] = True
        if completion.refusal:
            detail["refusal"] = True
        if completion.tokens:
            detail["tokens"] = dict(completion.tokens)
        if reply.attempts > 1:
            detail["attempts"] = reply.attempts
        self._note(completion)
        return Response(item.id, text, {**detail, "seconds": round(reply.seconds, 4)})

    def _note(self, completion: Completion) -> None:
        """Remember which models and servers said they answered; a hosted name may change hands during a run."""
        for name, value in (("system_fingerprints", completion.fingerprint), ("reported_models", completion.model)):
            if value and value not in self._seen[name] and len(self._seen[name]) < _MOST_SEEN:
                self._seen[name].append(value)


class _Watch:
    """Ends a run that gets no answers, so that it does not go through all items for nothing."""

    def __init__(self, server: Server, *, answered: int) -> None:
        self.server, self._answered = server, answered
        self._lost = self._failed = 0

    def answered(self) -> None:
        self._answered += 1
        self._lost = 0

    async def failed(self, fault: Unanswered) -> None:
        """Count it.

        Raises:
            Stopped: the server is gone, or it has refused everything so far.
        """
        self._failed += 1
        self._lost = self._lost + 1 if fault.lost else 0
        row = max(_LOST_IN_A_ROW, self.server.concurrency)
        if self._lost >= row and (self._lost >= 4 * row or not await self.server.answers()):
            gone = f"{self.server.shown} is gone: {self._lost} questions in a row had no reply, the last: {fault}"
            raise Stopped(f"{gone}; {_GO_ON}")
        if not self._answered and self._failed >= _REFUSED_FROM_THE_START:
            raise Stopped(
                f"{self.server.shown} answers nothing: the first {self._failed} questions failed, the last: {fault}"
            )


def _only(names: Sequence[str], shown: str) -> str:
    if len(names) == 1:
        return names[0]
    if not names:
        raise ConfigError(f"{shown} lists no model: give --model NAME, as the server knows it")
    raise ConfigError(f"{shown} lists {len(names)} models: give one with --model: {choices(names[:20])}")
