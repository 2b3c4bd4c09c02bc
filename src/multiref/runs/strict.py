"""Models that take what they mean and nothing else, and settings made from a constructor's own arguments."""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, create_model, model_validator

from multiref.runs.sentences import nearest
from multiref.runs.yaml_values import SHORT

T = TypeVar("T")


class Strict(BaseModel):
    """No unknown key, no number that is text or true.
    `SHORT`: the key that a bare text stands for. `MOVED`: old key → what to write instead."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())
    SHORT: ClassVar[str | None] = None
    MOVED: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        values = open_short(values, cls.SHORT)
        for key in values if isinstance(values, dict) else ():
            if key in cls.MOVED:
                raise ValueError(f"{key}: {cls.MOVED[key]}")
            if key not in cls.model_fields:
                raise ValueError(f"{key}: unknown key{nearest(key, cls.model_fields)}")
        return values

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        """As an editor should know it: with the bare text that stands for a key."""
        schema: dict[str, Any] = handler(core_schema)
        return schema if cls.SHORT is None else {"anyOf": [{"type": "string"}, schema]}


class Arguments(Strict, Generic[T]):
    """A constructor's arguments as settings. With `CHECK`, what the constructor refuses is refused as soon as it is read."""

    CONSTRUCTOR: ClassVar[Callable[..., Any]]
    OWN: ClassVar[frozenset[str]]
    CHECK: ClassVar[bool] = False

    def given(self) -> dict[str, Any]:
        """The arguments that were written down."""
        return {name: getattr(self, name) for name in sorted(self.model_fields_set & self.OWN)}

    def make(self, **more: Any) -> T:
        """What the constructor makes of them."""
        made: T = type(self).CONSTRUCTOR(**self.given(), **more)
        return made

    @model_validator(mode="after")
    def _makes(self) -> Self:
        if self.CHECK:
            self.make()
        return self


@dataclasses.dataclass(frozen=True, eq=False)
class ReadAs:
    """`Annotated[Arguments[Plan], ReadAs(kind)]`: a program sees the first, a file's value is read as `kind`."""

    kind: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return handler.generate_schema(self.kind)


def arguments_of(
    constructor: Callable[..., T],
    *,
    base: type[Arguments[T]] = Arguments,
    tag: tuple[str, str] | None = None,
    without: Collection[str] = (),
    check: bool = True,
    only: Callable[[Any], Any] = lambda hint: hint,
    defaults: Mapping[str, Any] = {},
    moved: Mapping[str, str] = {},
) -> type[Arguments[T]]:
    """Settings with the fields of a dataclass, or the parameters of another constructor.

    Args:
        base: has fields beside them. tag: (key, value) that names this one among several. without:
            arguments that are no settings.
        check: make it as soon as it is read. only: a type → the type that a file can hold, or None.
            defaults: other than the constructor's.
        moved: as `Strict.MOVED`.
    """
    fields: dict[str, Any] = {}
    for name, hint, default in _parameters(constructor):
        if name not in without and name not in moved and (readable := only(hint)) is not None:
            fields[name] = (_from_yaml(readable), Field(default=defaults[name]) if name in defaults else default)
    tagged: dict[str, Any] = {} if tag is None else {tag[0]: (Literal[tag[1]], tag[1])}
    made: type[Arguments[T]] = create_model(
        constructor.__name__, __base__=base, __doc__=constructor.__doc__, **(tagged | fields)
    )
    made.CONSTRUCTOR, made.OWN, made.CHECK, made.MOVED = constructor, frozenset(fields), check, moved
    return made


def one_of(tag: str, constructors: Mapping[str, Callable[..., Any]], *, renamed: Mapping[str, str] = {}, **options: Any) -> Any:
    """The type of a key that holds the arguments of one of several constructors, told apart by `tag`;
    a bare text is the tag's value."""
    return union(tag, [arguments_of(each, tag=(tag, name), **options) for name, each in constructors.items()], renamed=renamed)


def union(tag: str, models: Collection[type[Strict]], *, renamed: Mapping[str, str] = {}) -> Any:
    """The same of models that have the tag already. renamed: old tags, with what they are called now."""

    one: Any = Annotated[Union[tuple(models)], Field(discriminator=tag)]  # noqa: UP007
    names: Any = Union[tuple(each.model_fields[tag].annotation for each in models)]  # noqa: UP007

    def opened(value: Any) -> Any:
        value = open_short(value, tag)
        old = value.get(tag) if isinstance(value, dict) else None
        if isinstance(old, str) and old in renamed:
            raise ValueError(f"{tag}: {old} is called {renamed[old]} now.")
        return value

    return Annotated[one, BeforeValidator(opened, json_schema_input_type=names | one)]


def open_short(value: Any, short: str | None) -> Any:
    """The keys that a bare text stands for: the one that it is short for."""
    if short is not None and isinstance(value, dict) and SHORT in value:  # `--set` laid a key beside the text
        return {short: value[SHORT], **{key: each for key, each in value.items() if key != SHORT}}
    return {short: value} if short is not None and isinstance(value, str) else value


def _parameters(constructor: Callable[..., Any]) -> Iterator[tuple[str, Any, Any]]:
    """(name, type, pydantic's field) of each argument."""
    factories = {f.name: f.default_factory for f in getattr(constructor, "__dataclass_fields__", {}).values()}
    own: Any = constructor
    if isinstance(constructor, type) and not factories:
        own = getattr(constructor, "__init__")  # noqa: B009
    hints = typing.get_type_hints(own, include_extras=True)
    for name, parameter in inspect.signature(constructor).parameters.items():
        if (factory := factories.get(name, dataclasses.MISSING)) is not dataclasses.MISSING:
            yield name, hints[name], Field(default_factory=factory)
        else:
            yield name, hints[name], Field(default=... if parameter.default is parameter.empty else parameter.default)


def _from_yaml(hint: Any) -> Any:
    """YAML has lists for tuples."""
    if typing.get_origin(hint) is tuple:
        return Annotated[hint, BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
    return hint


def _check_place(written: Any) -> Any:
    if not isinstance(written, str | None) or not (written or "env:").startswith(("env:", "file:")):
        raise ValueError("a key that is written out would be stored (it is not shown here); write env:NAME or file:PATH.")
    return written


KeyPlace = Annotated[str, BeforeValidator(_check_place)]  # where an API key is
