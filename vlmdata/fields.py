"""Reading single fields of a raw row: texts, images and whatever is kept, in the shapes that files bring them."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlmdata.errors import RecordError
from vlmdata.records import Image

__all__ = ["image_value", "images_value", "kept", "meta_text", "printable", "shown", "text_value"]

_MOST_NESTED = 32
_KEPT_NUMBER = 10**300


def text_value(row: Mapping[str, Any], name: str) -> str:
    """The text in a field; a missing or null one is ``""``, for the record to judge.

    Raises:
        RecordError: ``wrong_fields``, the field holds something else than text.
    """
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RecordError("wrong_fields", f"{name} is {type(value).__name__}, expected text")
    return value


def image_value(value: Any) -> Image:
    """One image: ``{bytes, path}``, encoded bytes, a path, or a ``data:`` address.

    Raises:
        RecordError: ``image_missing``, ``image_remote`` or ``wrong_fields``.
    """
    if value is None:
        raise RecordError("image_missing", "the image is null")
    if isinstance(value, bytes):
        return Image(data=value)
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
        if path is not None and not isinstance(path, str):
            raise RecordError("wrong_fields", f"the path of an image is {type(path).__name__}, expected text")
        if isinstance(data, str):
            data = _base64(data)
        if data is not None and not isinstance(data, bytes):
            found = type(data).__name__
            raise RecordError("wrong_fields", f"the bytes of an image are {found}, expected bytes or base64")
        if data is None and path:
            return _from_text(path)
        return Image(data=data, path=path)
    raise RecordError("wrong_fields", f"an image is {type(value).__name__}, expected bytes, a path or {{bytes, path}}")


def images_value(value: Any) -> tuple[Image, ...]:
    """A list of images, or a single one; null is no image."""
    if value is None:
        return ()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(image_value(item) for item in value)
    return (image_value(value),)


def printable(value: str) -> str:
    """A string that any file can hold: what is no UTF-8 (bytes of file names, lone surrogates) is spelled out."""
    return value.encode("utf-8", "backslashreplace").decode()


def shown(value: Any) -> str:
    """A value as an error detail shows it: short, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, lists without end
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def meta_text(value: Any) -> str:
    """A value to keep, as text.

    Raises:
        RecordError: ``wrong_fields``, it has no text form.
    """
    try:
        return printable(str(value))
    except (ValueError, RecursionError) as error:
        raise RecordError("wrong_fields", f"a {type(value).__name__} cannot be kept as text: {error}") from None


def kept(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The named fields that are there, as values that JSON in UTF-8 can hold.

    Raises:
        RecordError: ``wrong_fields``, a value is nested too deep or a number too long.
    """
    return {printable(name): _json_value(row[name], 0) for name in names if row.get(name) is not None}


def _json_value(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, int):
        if abs(value) > _KEPT_NUMBER:
            raise RecordError("wrong_fields", "a number has more than 300 digits")
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if depth == _MOST_NESTED:
        raise RecordError("wrong_fields", f"a value is nested more than {_MOST_NESTED} deep")
    if isinstance(value, Mapping):
        return {meta_text(name): _json_value(item, depth + 1) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [_json_value(item, depth + 1) for item in value]
    return meta_text(value)


def _from_text(value: str) -> Image:
    if value.startswith("data:"):
        return Image(data=_base64(value.partition(",")[2]))
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", value):
        raise RecordError("image_remote", f"{value[:120]} is not a file")
    if not value.strip():
        raise RecordError("image_missing", "the path of an image is blank")
    return Image(path=value)


def _base64(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RecordError("wrong_fields", f"the bytes of an image are text that is not base64: {error}") from None
