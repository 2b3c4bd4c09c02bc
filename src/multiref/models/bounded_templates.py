"""Chat templates as transformers runs them, with an end: a template is a program that came with a model.

transformers gives it no attributes that lead anywhere (jinja's sandbox). Here it also gets processor time and room for what it
writes. Values are measured before they are made, since nothing stops them half-way; loops, calls and filters look at the clock.
"""

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from importlib import import_module
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateRuntimeError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

SECONDS = 2.0  # of processor time for one conversation
CHARACTERS = 2**27  # joined and copied on the way, together
WRITTEN = 2**20, 16  # so many characters, and so many for each of the conversation
_NUMBER = 10**6  # of a repetition, a width
_GROW = {"center", "wordwrap", "urlize", "xmlattr", "batch", "slice"}  # filters that no chat template uses, and that only pad
_LISTS = {"attr", "count", "d", "default", "dictsort", "first", "groupby", "items", "last", "length", "list", "map", "max",
          "min", "random", "reject", "rejectattr", "reverse", "select", "selectattr", "sort", "sum", "unique"}  # fmt: skip


class TooMuch(TemplateRuntimeError):
    """The template takes more time or room than it has."""


class _Budget:
    def __init__(self) -> None:
        self.left, self.until, self.looks = CHARACTERS, time.thread_time() + SECONDS, 0


_budget: ContextVar[_Budget | None] = ContextVar("budget", default=None)


@contextmanager
def _budgeted() -> Iterator[None]:
    token = _budget.set(_Budget())
    try:
        yield
    finally:
        _budget.reset(token)


def bound_templates() -> None:
    """From now on transformers compiles every chat template as one of ours."""
    home: Any = import_module("transformers.utils.chat_template_utils")
    if hasattr(home._compile_jinja_template, "unbounded"):
        return
    original = home._compile_jinja_template

    @lru_cache
    def compile_bounded(source: str) -> Template:
        bounded = getattr(original, "__wrapped__", original)("").environment  # theirs, with filters and extensions; not shared
        bounded.__class__, bounded.finalize = _Bounded, _print
        bounded.template_class = _BoundedTemplate
        bounded.filters = {name: _measured(name, each) for name, each in bounded.filters.items() if name not in _GROW}
        bounded.filters |= {"bounded_each": _each, "bounded_join": lambda parts: "".join(str(_print(part)) for part in parts)}
        bounded.filters["bounded_compared"] = lambda value: value if isinstance(value, str) else _print(value)
        bounded.globals.pop("lipsum", None)
        with _budgeted():  # jinja computes what is constant when it compiles
            made: Template = bounded.from_string(source)
        return made

    compile_bounded.unbounded = original  # type: ignore[attr-defined]
    home._compile_jinja_template = compile_bounded


class _BoundedTemplate(Template):
    def render(self, *args: Any, **values: Any) -> str:
        """As jinja renders, within the time and the room; one that once went beyond is not tried again."""
        if stopped := getattr(self, "stopped", None):
            raise TooMuch(stopped)  # each try would take the whole time again
        try:
            with _budgeted():
                room = WRITTEN[0] + WRITTEN[1] * _characters(values)
                return "".join(_within(room, self.root_render_func(self.new_context(dict(*args, **values)))))
        except TooMuch as error:
            self.stopped = str(error)
            raise


class _Bounded(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Counted().visit(super()._parse(source, name, filename))  # type: ignore[no-any-return]

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _spend(_size_of_operation(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **options: Any) -> Any:
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)  # jinja wraps str.format
        args = tuple(map(_listed, args))
        _spend(_size_of_call(str(getattr(__obj, "__name__", "")), owner, [*args, *options.values()]))
        return _count(super().call(__context, __obj, *args, **options))


class _Counted(NodeTransformer):
    """Loops look at the clock at each turn, and pay for the fixed text that they write; `~` is measured."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        fixed = sum(len(each.data) for each in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.iter = _filter(node.iter, "bounded_each", nodes.Const(fixed))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "bounded_join")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _filter(node.expr, "bounded_compared")
        return node


def _filter(node: Any, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _each(values: Iterable[Any], fixed: int) -> Iterator[Any]:
    for value in values:
        _spend(fixed)
        yield value


def _within(room: int, parts: Iterable[str]) -> Iterator[str]:
    left = room
    for part in parts:
        left -= len(part)
        if left < 0:
            raise TooMuch(f"it writes more than {room:,} characters")
        _spend(len(part))
        yield part


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(_characters, inner))


def _listed(value: Any) -> Any:
    """What can be looked at only once, or tells no sizes, as a list."""
    return list(value) if isinstance(value, Iterator | range) else value


def _measured(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result is measured before it is made, as far as it can be more than what it is made of."""

    @wraps(made)
    def measured(*args: Any, **options: Any) -> Any:
        rest = list(map(_listed, args))
        here = rest[1:] if hasattr(made, "jinja_pass_arg") else rest  # the first may be jinja's own
        given = [*here[1:], *options.values()]
        if name not in _LISTS and here:
            _print(here[0])
        _spend(_size_of_call(name, here[0] if here else None, given))
        return _count(made(*rest, **options))

    return measured


def _spend(size: float) -> None:
    """TooMuch where nothing is left. Nothing is counted outside a rendering."""
    budget = _budget.get()
    if budget is None:
        return
    budget.left -= int(min(size, CHARACTERS + 1))
    if budget.left < 0:
        raise TooMuch(f"it writes more than {CHARACTERS:,} characters")
    budget.looks += 1
    if (size > 1000 or budget.looks % 16 == 0) and time.thread_time() > budget.until:
        raise TooMuch(f"it takes more than {SECONDS:g} s")


def _count(value: Any) -> Any:
    _spend(_length(value))
    return value


def _print(value: Any) -> Any:
    """The value, paid for as it is written: a list with all that is in it, as often as it is there."""
    if isinstance(value, list | tuple | set | dict):
        _spend(2 * len(value))
        for each in value.items() if isinstance(value, dict) else value:
            _print(each)
    else:
        _spend(_length(value))
    return value


def _length(value: Any) -> float:
    if isinstance(value, bool):
        return 1
    if isinstance(value, int):
        return value.bit_length() / 3
    return len(value) if isinstance(value, str | bytes | list | tuple | dict | set) else 1


def _size_of_operation(operator: str, left: Any, right: Any) -> float:
    whole = isinstance(left, int) and isinstance(right, int)
    if operator == "**":
        return _length(left) * abs(right) * 100 if whole else 1  # a thousand digits are enough
    if operator == "*" and not whole:
        times, what = (left, right) if isinstance(left, int) else (right, left)
        return _length(what) * max(times, 1) if isinstance(times, int) else 1
    if operator == "%" and isinstance(left, str):
        return _size_of_format(left, right if isinstance(right, tuple) else (right,))
    return _length(left) + _length(right)


def _size_of_call(name: str, owner: Any, given: list[Any]) -> float:
    """How large the result may be of a method of `owner`, or of the filter of this name on it."""
    if any(isinstance(each, int) and abs(each) > _NUMBER for each in given):
        return math.inf  # a width, a repetition, a depth of indentation
    texts = [each for each in given if isinstance(each, str | bytes)]
    if isinstance(owner, str | bytes):
        if name == "replace" and len(texts) > 1:
            return len(owner) + owner.count(texts[0]) * len(texts[1])  # type: ignore[arg-type]
        if name == "join" and given:
            return _size_of_join(given[0], len(owner))
        if name in ("format", "format_map"):
            return _size_of_format(str(owner), given)
        if name in ("indent", "expandtabs"):
            width = max([len(each) for each in texts] + [each for each in given if isinstance(each, int)] + [8])
            return len(owner) + width * (owner.count("\n") + owner.count("\t") + 1) if isinstance(owner, str) else 1
        if name == "translate":
            tables = [
                len(value) for each in given if isinstance(each, dict) for value in each.values() if isinstance(value, str)
            ]
            return len(owner) * max(tables, default=1)
    if name in ("join", "sum"):
        return _size_of_join(owner, max(map(len, texts), default=0))
    if name == "tojson":
        return math.inf if any(isinstance(each, int) and each > 64 for each in given) else 1
    return 1


def _size_of_join(parts: Any, between: int) -> float:
    return sum(_length(part) + between for part in parts) if isinstance(parts, list | tuple | dict) else 1


def _size_of_format(pattern: str, given: Iterable[Any]) -> float:
    """Every mark may be the longest value, or as wide as the largest number in the pattern."""
    widest = max(map(len, re.findall(r"\d+", pattern)), default=0)
    given = list(given)
    longest: float = max((_length(_print(value)) for value in given), default=0)
    if "*" in pattern or re.search(r"\{[^{}]*\{", pattern):  # a width is among what is given
        longest = max([longest, *(abs(value) for value in given if isinstance(value, int))])
    wide: float = 10 ** min(widest, 12) if widest > 3 else 0
    return (pattern.count("{") + pattern.count("%")) * (longest + wide) + len(pattern)
