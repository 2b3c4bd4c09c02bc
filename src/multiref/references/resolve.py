"""From what a user writes down (a path, a mapping, a URL, an object) to a reference."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from multiref.errors import ArgumentError
from multiref.models.adapters import on_base
from multiref.models.audit import Audit
from multiref.models.loading import LanguageModel
from multiref.models.precision import choose_precision
from multiref.models.spec import TOKENISATION, ModelSpec, Tokenisation
from multiref.references.completion_api import Connection
from multiref.references.identity import file_identity
from multiref.references.local import LocalReference
from multiref.references.protocol import Reference
from multiref.references.server import ServerReference
from multiref.references.store import Store

_HERE = {"dtype", "device", "token_budget", "logits_budget"}  # what concerns models on this machine, and no server


@dataclass
class Opener:
    """Opens one reference, at most once in a process. It travels to other processes as its description, not as a model.

    what: a model folder or hub id; a `ModelSpec`; a server's URL; a mapping with `model` and other fields of `ModelSpec`, or
        with `endpoint` and arguments of `ServerReference` and `Connection`, and perhaps `tokenisation`, in what it differs from
        the collection's; a `LanguageModel`; or an object with the protocol's two methods.
    here: dtype, device, token_budget, logits_budget, as of `LocalReference`; a server has none of them.
    dtype: what `dtype: auto` is, once that is settled.
    audit: how rows are laid out, which the opened reference obeys wherever it is opened.
    """

    what: Any
    tokenisation: Tokenisation = TOKENISATION
    here: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    audit: Audit | None = field(default=None, repr=False)
    opened: Reference | None = field(default=None, init=False, repr=False)

    def __call__(self) -> Reference:
        if self.opened is None:
            self.opened = self._open()
        if self.audit is not None:
            self.opened.obey(self.audit)  # type: ignore[attr-defined]  # what was audited lays out rows
        return self.opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "opened": None}

    def settle(self, keeper: Store, *, say: Callable[[str], None] | None = None) -> None:
        """`dtype: auto` as the store has it. Where it has nothing, with `say` it is chosen now, told, and kept there."""
        spec = self.what.get("model") if isinstance(self.what, Mapping) else self.what
        if not isinstance(spec, ModelSpec) or spec.dtype != "auto":
            return
        address = Store.address(file_identity(on_base(spec)))
        kept = keeper.record("precisions", address)
        if not kept and say is not None:
            found = choose_precision(on_base(spec))
            kept = {"dtype": found.dtype, "why": str(found)}
            keeper.keep("precisions", address, kept)
            say(f"{spec.path}: {found}.")
        self.dtype = kept.get("dtype")

    def _open(self) -> Reference:
        what, tokenisation, here = self.what, self.tokenisation, dict(self.here)
        if isinstance(what, Reference):
            return what
        if isinstance(what, Mapping):
            given = what.get("tokenisation", {})
            if not isinstance(given, Tokenisation):
                _check_keys(given, {each.name for each in fields(Tokenisation)}, "tokenisation")
                given = replace(tokenisation, **given)
            tokenisation = given
            here |= {name: what[name] for name in _HERE & what.keys()}
            rest = {name: value for name, value in what.items() if name not in {*_HERE, "tokenisation"}}
            if "endpoint" in what:
                return _server(rest, tokenisation)
            what = _spec(rest)
        if isinstance(what, str) and what.startswith(("http://", "https://")):
            return ServerReference(what, tokenisation=tokenisation)
        if isinstance(what, ModelSpec) and what.dtype == "auto":
            what = replace(what, dtype=self.dtype or "auto")
        if isinstance(what, ModelSpec | LanguageModel) or (isinstance(what, str | os.PathLike) and str(what)):
            return LocalReference(what, tokenisation=tokenisation, **here)
        raise ArgumentError(
            f"A reference is given as {type(what).__name__}; expected a model folder or hub id, a ModelSpec, a server's URL, a "
            "mapping with `model` or `endpoint`, or an object with the methods identity() and score(items)."
        )


def _spec(given: Mapping[str, Any]) -> ModelSpec | LanguageModel | str:
    """A mapping as a `ModelSpec`; `model` stands for `path` there, and may be a spec or a model that is in memory."""
    options = {("path" if name == "model" else name): value for name, value in given.items()}
    _check_keys(options, {each.name for each in fields(ModelSpec)}, "a model on this machine")
    if not isinstance(options.get("path"), str | os.PathLike) and len(options) == 1:
        what: ModelSpec | LanguageModel | str = options["path"]
        return what
    return ModelSpec(**options)


def _server(given: Mapping[str, Any], tokenisation: Tokenisation) -> ServerReference:
    connection = {each.name for each in fields(Connection)}
    own = {"endpoint", "model", "tokenizer", "mode", "weights", "connection"}
    _check_keys(given, own | connection | {"revision", "trust_remote_code"}, "a server")
    options = {name: given[name] for name in own & given.keys()}
    if named := {name: given[name] for name in connection & given.keys()}:
        options["connection"] = Connection(**named)
    if (of_tokenizer := {"revision", "trust_remote_code"} & given.keys()) and isinstance(given.get("tokenizer"), str):
        options["tokenizer"] = ModelSpec(given["tokenizer"], **{name: given[name] for name in of_tokenizer})
    return ServerReference(**options, tokenisation=tokenisation)


def _check_keys(given: Mapping[str, Any], known: set[str], what: str) -> None:
    if unknown := sorted(given.keys() - known):
        raise ArgumentError(f"A reference has the key {unknown[0]!r}; expected for {what}: {', '.join(sorted(known))}.")


def location(what: Any) -> str:
    """Where a reference was taken from, for people and for noticing a change in place; no score depends on it."""
    if isinstance(what, ModelSpec):
        what = {"model": what.path, "adapter": what.adapter}
    if isinstance(what, Mapping):
        base = what.get("endpoint") or what.get("path") or what.get("model")
        adapter = what.get("adapter")
        return f"{location(base)} + {location(adapter)}" if adapter else location(base)
    if isinstance(what, str) and what.startswith(("http://", "https://")):
        return what
    if isinstance(what, str | os.PathLike):
        return os.path.abspath(what) if os.path.exists(what) else str(what)
    return f"<{type(what).__module__}.{type(what).__qualname__}>"
