"""Conditions on a row, written in a small part of Python's expression syntax.

``turns <= 4 and pixels > 50000 and not contains(lower(answer), "sorry")``. The text is parsed, never evaluated by
Python: only names of ``vlmdata.row_fields.FIELDS``, a few functions, numbers, texts, comparisons, arithmetic and
``and or not in`` exist. Kinds are checked before the first row is read. A comparison with what is not there, as
``meta("score") > 3`` in a row without a score, is false.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vlmdata.errors import ConfigError, choices
from vlmdata.row_fields import FIELDS, Kind, Values, columns_of

__all__ = ["Expression", "FUNCTIONS", "parse"]

FUNCTIONS = {
    "len": "len(text): its characters",
    "lower": "lower(text)",
    "contains": "contains(text, part)",
    "startswith": "startswith(text, part)",
    "endswith": "endswith(text, part)",
    "matches": "matches(text, pattern): a regular expression is found in it",
    "meta": "meta(key): an entry of the row's meta",
}
"""The functions, and how each is called."""

_Value = Callable[[Values], Any]
_MAX_CHARS = 10_000
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_ORDER: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class _Term(NamedTuple):
    """A part of an expression, ready to be worked out."""

    kind: Kind
    value: _Value


@dataclass(frozen=True, slots=True)
class Expression:
    """A condition.

    Attributes:
        text: as it was written.
        columns: the shard columns it needs.
        value: its value for a row; use ``holds``.
    """

    text: str
    columns: frozenset[str]
    value: _Value

    def holds(self, row: Values) -> bool:
        """Whether the row fulfils it.

        Raises:
            ConfigError: it cannot be worked out, as in a division by zero.
        """
        try:
            return bool(self.value(row))
        except (ArithmeticError, MemoryError, RecursionError, TypeError, ValueError) as error:
            raise ConfigError(f"--where {_brief(self.text)} fails at row {row['id']}: {error}") from None


def parse(text: str) -> Expression:
    """Read an expression.

    Raises:
        ConfigError: it is no expression, or has something in it that is not known here.
    """
    if len(text) > _MAX_CHARS:
        raise ConfigError(f"--where has {len(text)} characters, at most {_MAX_CHARS} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a pattern like "\\d" is read as it stands
            tree = ast.parse(text.strip(), mode="eval")
        compiler = _Compiler(text)
        term = compiler.term(tree.body)
    except SyntaxError as error:
        raise ConfigError(f"--where {_brief(text)} cannot be read: {error.msg} at character {error.offset}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"--where {_brief(text)} cannot be read: {error}") from None
    return Expression(text, frozenset(compiler.columns), term.value)


class _Compiler:
    """Turns the syntax tree into nested functions."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.columns = {"id"}

    def term(self, node: ast.expr) -> _Term:
        """Any part.

        Raises:
            ConfigError: it is of a form that is not known here.
        """
        known: dict[type[ast.expr], Callable[[Any], _Term]] = {
            ast.BoolOp: self._logic,
            ast.UnaryOp: self._unary,
            ast.BinOp: self._arithmetic,
            ast.Compare: self._comparison,
            ast.Call: self._call,
            ast.Name: self._name,
            ast.Constant: self._constant,
        }
        make = known.get(type(node))
        if make is None:
            allowed = "fields, numbers, texts, + - * / // %, comparisons, and, or, not, in (...)"
            raise self._error(f"{ast.unparse(node)[:60]!r} is not allowed; allowed: {allowed} and {_functions()}")
        return make(node)

    def _error(self, what: str) -> ConfigError:
        return ConfigError(f"--where {_brief(self._text)}: {what}")

    def _logic(self, node: ast.BoolOp) -> _Term:
        parts = [self.term(part).value for part in node.values]
        if isinstance(node.op, ast.And):
            return _Term("number", lambda row: all(part(row) for part in parts))
        return _Term("number", lambda row: any(part(row) for part in parts))

    def _unary(self, node: ast.UnaryOp) -> _Term:
        inner = self.term(node.operand)
        value = inner.value
        if isinstance(node.op, ast.Not):
            return _Term("number", lambda row: not value(row))
        if isinstance(node.op, ast.USub):
            self._check(node.operand, inner, "number")
            return _Term("number", lambda row: -_number(value(row)))
        raise self._error("of the signs only - and not are allowed")

    def _arithmetic(self, node: ast.BinOp) -> _Term:
        work = _ARITHMETIC.get(type(node.op))
        if work is None:
            raise self._error(f"{ast.unparse(node)[:60]!r}: of arithmetic only + - * / // % are allowed")
        left, right = self.term(node.left), self.term(node.right)
        self._check(node.left, left, "number")
        self._check(node.right, right, "number")
        first, second = left.value, right.value
        return _Term("number", lambda row: work(_number(first(row)), _number(second(row))))

    def _comparison(self, node: ast.Compare) -> _Term:
        steps: list[_Value] = []
        left_node = node.left
        for sign, right_node in zip(node.ops, node.comparators, strict=True):
            steps.append(self._step(sign, left_node, right_node))
            left_node = right_node
        return _Term("number", lambda row: all(step(row) for step in steps))

    def _step(self, sign: ast.cmpop, left_node: ast.expr, right_node: ast.expr) -> _Value:
        if isinstance(sign, ast.In | ast.NotIn):
            return self._membership(isinstance(sign, ast.In), left_node, right_node)
        left, right = self.term(left_node), self.term(right_node)
        if "any" not in (left.kind, right.kind) and left.kind != right.kind:
            shown = f"{ast.unparse(left_node)[:40]!r} is a {left.kind}, {ast.unparse(right_node)[:40]!r} a {right.kind}"
            raise self._error(f"{shown}; they cannot be compared")
        first, second = left.value, right.value
        if isinstance(sign, ast.Eq):
            return lambda row: first(row) == second(row)
        if isinstance(sign, ast.NotEq):
            return lambda row: first(row) != second(row)
        order = _ORDER.get(type(sign))
        if order is None:
            raise self._error("of comparisons only < <= > >= == != and in are allowed")
        return lambda row: _ordered(order, first(row), second(row))

    def _membership(self, wanted: bool, left_node: ast.expr, right_node: ast.expr) -> _Value:
        left = self.term(left_node)
        first = left.value
        if isinstance(right_node, ast.Tuple | ast.List | ast.Set):
            items = [self.term(item).value for item in right_node.elts]
            return lambda row: any(first(row) == item(row) for item in items) is wanted
        right = self.term(right_node)
        self._check(left_node, left, "text")
        self._check(right_node, right, "text")
        second = right.value
        return lambda row: _part_of(first(row), second(row)) is wanted

    def _call(self, node: ast.Call) -> _Term:
        name = node.func.id if isinstance(node.func, ast.Name) else None
        if name not in FUNCTIONS:
            raise self._error(f"{ast.unparse(node.func)[:60]!r} is no function here; valid: {_functions()}")
        expected = 1 if name in ("len", "lower", "meta") else 2
        if node.keywords or len(node.args) != expected or any(isinstance(arg, ast.Starred) for arg in node.args):
            raise self._error(f"{ast.unparse(node)[:60]!r}: expected {FUNCTIONS[name]}")
        terms = [self.term(arg) for arg in node.args]
        for arg, term in zip(node.args, terms, strict=True):
            self._check(arg, term, "text")
        return self._function(name, node.args, [term.value for term in terms])

    def _function(self, name: str, nodes: Sequence[ast.expr], values: Sequence[_Value]) -> _Term:
        first, second = values[0], values[-1]
        if name == "meta":
            self.columns.add("meta")
            return _Term("any", lambda row: row.meta(first(row)))
        if name == "len":
            return _Term("number", lambda row: len(_text(first(row))))
        if name == "lower":
            return _Term("text", lambda row: _text(first(row)).lower())
        if name == "contains":
            return _Term("number", lambda row: _part_of(second(row), first(row)))
        if name == "matches":
            found = self._pattern(nodes[1])
            return _Term("number", lambda row: found(_text(first(row))) is not None)
        side = str.startswith if name == "startswith" else str.endswith
        return _Term("number", lambda row: side(_text(first(row)), _text(second(row))))

    def _pattern(self, node: ast.expr) -> Callable[[str], Any]:
        if not isinstance(node, ast.Constant):
            raise self._error(f"{ast.unparse(node)[:60]!r}: the pattern of matches() is a text in quotes")
        try:
            return re.compile(str(node.value)).search
        except (re.error, RecursionError, OverflowError) as error:
            raise self._error(f"the pattern {node.value!r} cannot be read: {error}") from None

    def _name(self, node: ast.Name) -> _Term:
        name = node.id
        if name not in FIELDS:
            raise self._error(f"no field named {name!r}; valid: {choices(FIELDS)}")
        self.columns |= columns_of([name])
        return _Term(FIELDS[name].kind, lambda row: row[name])

    def _constant(self, node: ast.Constant) -> _Term:
        value = node.value
        if not isinstance(value, str | int | float):
            raise self._error(f"{ast.unparse(node)[:60]!r} is not allowed; allowed are numbers and texts in quotes")
        return _Term("text" if isinstance(value, str) else "number", lambda row: value)

    def _check(self, node: ast.expr, term: _Term, kind: Kind) -> None:
        if term.kind not in (kind, "any"):
            raise self._error(f"{ast.unparse(node)[:60]!r} is a {term.kind}, expected a {kind}")


def _brief(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:120] + " ...")


def _functions() -> str:
    return ", ".join(f"{name}()" for name in sorted(FUNCTIONS))


def _text(value: Any) -> str:
    """A value as text; what is not there is the empty text."""
    return value if isinstance(value, str) else "" if value is None else str(value)


def _number(value: Any) -> int | float:
    """What can be calculated with: of texts ``*`` and ``%`` would make other texts, of any size."""
    if not isinstance(value, int | float):
        raise TypeError(f"{_brief(str(value))} is no number" if value is not None else "a number is not there")
    return value


def _part_of(part: Any, whole: Any) -> bool:
    """Whether a text stands in a text, or a value in a list from ``meta``."""
    if isinstance(whole, list):
        return part in whole
    return _text(part) in _text(whole)


def _ordered(order: Callable[[Any, Any], bool], left: Any, right: Any) -> bool:
    try:
        return order(left, right)
    except TypeError:
        return False
