"""`multiref score`: a file of preference pairs under K references, once, into a store."""

import shlex
import tempfile
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiref.cli.options import (
    Bad,
    BadRows,
    Column,
    Data,
    Device,
    Dtype,
    Limit,
    Name,
    NamedReferences,
    Ranked,
    Rankings,
    Split,
    Store,
    for_each,
    name_and_path,
    options_of,
    selection,
)
from multiref.cli.voice import is_quiet
from multiref.errors import ArgumentError

if TYPE_CHECKING:
    from multiref.references.cost_estimate import CostEstimate
    from multiref.references.engines import Engine


class Truncation(Enum):
    """The choices of --truncation."""

    keep_start = "keep_start"
    keep_end = "keep_end"
    error = "error"


COLUMNS = ("reference", "wanted", "already there", "to score", "shards", "MB", "completion tokens", "time")


def command(
    data: Data,
    reference: NamedReferences,
    store: Store,
    name: Name = None,
    split: Split = None,
    column: Column = None,
    rankings: Ranked = Rankings.ends,
    bad_rows: Bad = BadRows.refuse,
    limit: Limit = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what there is to do, how many tokens and bytes and how long; store nothing.")
    ] = False,
    engine: Annotated[str, typer.Option(help="local, or ray: one pool of workers per reference on a Ray cluster.")] = "local",
    workers: Annotated[
        int | None, typer.Option(help="ray: workers per reference; default as many as there is room for.")
    ] = None,
    gpus_per_worker: Annotated[float, typer.Option(help="ray: GPUs that each worker reserves.")] = 0.0,
    address: Annotated[str | None, typer.Option(help="ray: the cluster's address, such as auto; default a local Ray.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    max_length: Annotated[
        int | None, typer.Option(help="Truncate to so many tokens (marked in the scores). Default the model's context.")
    ] = None,
    truncation: Annotated[
        Truncation, typer.Option(help="What stays when a text is too long; error refuses such a text.")
    ] = Truncation.keep_start,
    end: Annotated[bool, typer.Option("--end/--no-end", help="Score the end token too, as TRL does.")] = True,
    quantization: Annotated[str | None, typer.Option(help="int8, or int4 (on CUDA). Default none.")] = None,
    attention: Annotated[
        list[str] | None,
        typer.Option(help="sdpa, eager, flash_attention_2, …; name=eager for one reference. Default the model's."),
    ] = None,
    chat_template_kwargs: Annotated[
        list[str] | None,
        typer.Option(help="For the chat template, as JSON: '{\"enable_thinking\": false}'; name={…} for one reference."),
    ] = None,
    shard_size: Annotated[int | None, typer.Option(help="Completions per shard, about: what a killed run may lose.")] = None,
    audit: Annotated[
        str, typer.Option(help="Rows also scored alone, to find the layout that gives the same: some (a few), or all.")
    ] = "some",
) -> "dict[str, Any]":
    """Score pairs under K references, one after another. What is stored already is not scored again;
    a killed run goes on where it was.

    Example: multiref score pairs.jsonl --reference base=./base --reference math=./math --store scores/
    """
    from rich.console import Console

    from multiref._json import parse_json
    from multiref.data import read
    from multiref.data.reading import SKIPPED
    from multiref.models import ModelSpec, Tokenisation
    from multiref.references import References
    from multiref.references.progress import Bar
    from multiref.report import Table, print_table

    tokenisation = Tokenisation(end=end, max_length=max_length, truncation=truncation.value)
    places = [name_and_path(text) for text in reference]
    local = [name for name, at in places if "://" not in at]  # a server has its own quantization, attention and template
    kinds = for_each("--attention", attention, local)
    options = for_each("--chat-template-kwargs", chat_template_kwargs, local)
    asked: list[tuple[str, Any]] = []
    for called, at in places:
        written = parse_json(options.get(called, "{}"), "--chat-template-kwargs", error=ArgumentError)
        if not isinstance(written, dict):
            raise ArgumentError(f'--chat-template-kwargs {options[called]!r}: expected a JSON object, such as {{"a": true}}.')
        special = called in local and (written or called in kinds or quantization is not None)
        model = ModelSpec(at, quantization=quantization, attention=kinds.get(called)) if special else None
        asked.append((called, {"model": model, "tokenisation": {"chat_template_kwargs": written}} if special else at))
    references = References(asked, tokenisation=tokenisation, dtype=dtype or "auto", device=device)
    runner = _engine(engine, workers=workers, gpus=gpus_per_worker, address=address)
    chosen = selection(name, split, column, rankings, bad_rows, limit)
    found = read(
        data,
        chosen,
        skipped=None if dry_run else store / SKIPPED,
        say=typer.echo,
        spool=tempfile.gettempdir() if dry_run else store,
    )
    pairs = found.pairs
    if dry_run:
        rows = [_row(estimate) for estimate in references.estimate_cost(pairs, store=store, shard_size=shard_size)]
        print_table(Table(COLUMNS, rows, "Nothing is stored: --dry-run"))
        typer.echo("Tokens and time are scaled up from a few completions here: right to within a factor of two or so.")
        return {"dry_run": True, "references": [dict(zip(COLUMNS, row)) for row in rows]}
    with Bar(Console(stderr=True, quiet=True) if is_quiet() else None) as bar:
        scores = references.score(pairs, store=store, engine=runner, progress=bar, shard_size=shard_size, audit=audit)
    for each in references.names:
        typer.echo(f"{each}: {bar.summary(each)}")
    typer.echo(f"{len(pairs):,} pairs, {len(scores):,} different completions, {len(references.names)} references in {store}")
    again = options_of(chosen, name="--data-name")
    return {
        "store": str(store),
        "pairs": len(pairs),
        "rows": found.rows,
        "bad_rows": len(found.bad),
        "format": found.format,
        "completions": len(scores),
        "references": {each: bar.summary(each) for each in references.names},
        "next": f"multiref inspect {shlex.quote(data)}{again} --store {shlex.quote(str(store))}",
    }


def _engine(name: str, *, workers: int | None, gpus: float, address: str | None) -> "Engine | str":
    if name == "ray":
        from multiref.references.engines.ray import RayEngine

        return RayEngine(workers=workers, gpus=gpus, address=address)
    if workers is not None or gpus or address is not None:
        raise ArgumentError("--workers, --gpus-per-worker and --address are of --engine ray. Add it, or leave them out.")
    return name


def _row(o: "CostEstimate") -> list[str]:
    minutes = "" if o.seconds is None else f"{o.seconds:.0f} s" if o.seconds < 120 else f"{o.seconds / 60:.0f} min"
    tokens = "" if o.tokens is None else f"{o.tokens:,}"
    counts = [f"{count:,}" for count in (o.wanted, o.stored, o.missing, o.shards)]
    return [o.name, *counts, f"{o.bytes / 1e6:.1f}", tokens, minutes]
