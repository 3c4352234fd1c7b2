"""What a chat completion says: the answer in it, its first token's likeliest alternatives, or why there is none.

The format is OpenAI's ``POST /chat/completions``; servers fill it in many ways, so nothing in it is taken for granted.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Completion", "NoAnswer", "first_line", "message_of", "parse", "probabilities", "read"]

_SHOWN = 200
_ROUNDING, _LEAST = 0.01, -1e4
"""A log probability is at most 0, but for rounding; servers write -9999 or -Infinity for what is all but impossible."""

_MARKERS = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}\N{LOWER ONE EIGHTH BLOCK}"
"""What byte-level (a letter that stands for a space) and SentencePiece tokenizers write for a leading space."""


class NoAnswer(Exception):
    """A reply in which there is no answer; says why in one line."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer.

    Attributes:
        text: without spaces around it.
        truncated: it ended at the limit of new tokens.
        refusal: it stands where OpenAI's servers put the model's refusals.
        first: the likeliest first tokens as (token, log probability); None where the server gives none.
        tokens: ``prompt`` and ``completion`` tokens, as far as the server counts them.
        model: the model's name as the server gives it with the answer.
        fingerprint: the server's ``system_fingerprint``.
    """

    text: str
    truncated: bool = False
    refusal: bool = False
    first: tuple[tuple[str, float], ...] | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)
    model: str | None = None
    fingerprint: str | None = None


def parse(body: bytes) -> Any:
    """A body as JSON.

    Raises:
        NoAnswer: it is not JSON.
    """
    try:
        return json.loads(body)
    except RecursionError:
        raise NoAnswer("the reply is JSON nested too deeply") from None
    except ValueError:
        pass
    if not body.strip():
        raise NoAnswer("the reply is empty")
    raise NoAnswer(f"the reply is not JSON: {first_line(body.decode(errors='replace'))}")


def read(reply: Any, *, silent: bool = False) -> Completion:
    """The answer in a parsed reply.

    A model's own refusal is an answer: its text. What the server's content filter cut is none, for the model did not
    say it; nor is a reply whose tokens all went into reasoning or into the call of a tool.

    Args:
        reply: the parsed body.
        silent: a message without a text will do, because only its first token is looked at.

    Raises:
        NoAnswer: there is none.
    """
    if not isinstance(reply, dict):
        raise NoAnswer(f"the reply is no completion but {_kind(reply)}")
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise NoAnswer(f"the reply has no choices: it is {_kind(reply)}")
    choice = choices[0]
    message, finish = choice.get("message"), choice.get("finish_reason")
    if choice.get("error"):
        raise NoAnswer(f"the server broke off: {message_of(choice)}")
    if not isinstance(message, dict):
        raise NoAnswer(f"the reply has no message but {_kind(message)}")
    if finish == "content_filter":
        raise NoAnswer("the server's content filter stopped the answer")
    text, refusal = _text(message)
    text = _writable(text).strip() if text is not None else None
    if not silent and (text is None or (not text and finish == "length" and _reasoning(message))):
        raise NoAnswer(_why_silent(message, finish))
    return Completion(
        text or "",
        truncated=finish == "length",
        refusal=refusal,
        first=_first(choice.get("logprobs")),
        tokens=_tokens(reply.get("usage")),
        model=_name(reply.get("model")),
        fingerprint=_name(reply.get("system_fingerprint")),
    )


def message_of(reply: Any) -> str:
    """What a parsed error reply says, in one line of at most 200 characters; empty where it says nothing.

    OpenAI: ``{"error": {"message"}}``; others: ``error``, ``detail`` or ``message`` as text, FastAPI: ``detail`` as a
    list of ``{"loc", "msg"}``.
    """
    for _ in range(4):
        if isinstance(reply, dict):
            known = (reply.get(name) for name in ("error", "message", "detail", "msg"))
            found = next((value for value in known if value), None)
            if "loc" in reply and isinstance(found, str):
                where = reply["loc"] if isinstance(reply["loc"], list) else [reply["loc"]]
                return first_line(f"{'.'.join(map(str, where))}: {found}")
            reply = found
        elif isinstance(reply, list) and reply:
            reply = reply[0]
    return first_line(reply) if isinstance(reply, str) else ""


def first_line(text: str) -> str:
    """A text as one printable line of at most 200 characters; a page of HTML is its title."""
    text = text[: 100 * _SHOWN]
    title = re.search(r"<title[^>]*>(.*?)</title", text, re.IGNORECASE | re.DOTALL)
    shown = " ".join(_writable(title[1] if title else text).split())
    shown = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in shown)
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 4]} ..."


def probabilities(first: Sequence[tuple[str, float]], words: Sequence[str]) -> dict[str, float]:
    """Raw probability of each word as the beginning of an answer, summed over its spellings among the likeliest tokens.

    ``Yes``, ``yes``, ``YES``, with a space or a tokenizer's mark of one before it, are spellings of one word, unless
    two words differ in nothing else. A longer word begins with a piece of it: at least two letters that begin no other
    word. A local model's tokenizer tells which pieces a word really begins with, a server does not. A word that none of
    the tokens begins has 0.
    """
    plain = [word.strip().casefold() for word in words]
    by_case = len(set(plain)) == len(words)
    spelled = plain if by_case else [word.strip() for word in words]
    found = dict.fromkeys(words, 0.0)
    for token, log_probability in first:
        text = token.strip().strip(_MARKERS).strip()
        text = text.casefold() if by_case else text
        begun = [word for word, whole in zip(words, spelled, strict=True) if len(text) > 1 and whole.startswith(text)]
        exact = [word for word, whole in zip(words, spelled, strict=True) if whole == text]
        if exact or len(begun) == 1:
            found[(exact or begun)[0]] += math.exp(log_probability)
    return {word: min(1.0, mass) for word, mass in found.items()}


def _text(message: Mapping[str, Any]) -> tuple[str | None, bool]:
    """The text of a message and whether it is a refusal; None where there is none."""
    content, refusal = message.get("content"), message.get("refusal")
    if isinstance(content, str):
        if not content.strip() and isinstance(refusal, str) and refusal:
            return refusal, True
        return content, False
    if isinstance(content, list):
        texts = [
            part if isinstance(part, str) else part.get("text") for part in content if isinstance(part, str | dict)
        ]
        said = [text for text in texts if isinstance(text, str)]
        refused = [part.get("refusal") for part in content if isinstance(part, dict)]
        declined = [text for text in refused if isinstance(text, str)]
        if said or declined:
            return "".join(said or declined), not said
    return (refusal, True) if isinstance(refusal, str) and refusal else (None, False)


def _reasoning(message: Mapping[str, Any]) -> bool:
    return any(isinstance(message.get(name), str) and message[name] for name in ("reasoning_content", "reasoning"))


def _why_silent(message: Mapping[str, Any], finish: Any) -> str:
    if _reasoning(message):
        return "all new tokens went into reasoning, none into an answer: allow more tokens"
    if message.get("tool_calls") or message.get("function_call"):
        return "the model called a tool and gave no answer"
    return f"the message has no text: content is {_kind(message.get('content'))}, finish_reason {finish!r:.40}"


def _first(logprobs: Any) -> tuple[tuple[str, float], ...] | None:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        return None
    top = content[0].get("top_logprobs")
    found: dict[str, float] = {}
    # The token that was taken need not be among the likeliest.
    for row in [*(top if isinstance(top, list) else []), content[0]]:
        row = row if isinstance(row, dict) else {}
        token, value = row.get("token"), row.get("logprob")
        if isinstance(value, bool) or not isinstance(value, int | float) or not isinstance(token, str):
            continue
        if value <= _ROUNDING:
            found.setdefault(token, float(min(0.0, max(_LEAST, value))))
    return tuple(found.items()) or None


def _tokens(usage: Any) -> dict[str, int]:
    if not isinstance(usage, dict):
        return {}
    named = {"prompt": usage.get("prompt_tokens"), "completion": usage.get("completion_tokens")}
    return {name: value for name, value in named.items() if type(value) is int and 0 <= value < 1 << 53}


def _name(value: Any) -> str | None:
    return first_line(value) or None if isinstance(value, str) else None


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with {first_line(', '.join(map(str, list(value)[:8]))) or 'nothing in it'}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return first_line(json.dumps(value))


def _writable(text: str) -> str:
    """Half a surrogate pair is valid JSON, and cannot be written as UTF-8."""
    return text.encode(errors="replace").decode()
