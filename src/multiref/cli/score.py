"""`multiref score`: score preference pairs under K references, once, into a store."""

import re
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from multiref.cli.options import Chosen, Data, Device, NamedReferences, belong, by_name, for_each, options_of
from multiref.cli.voice import Made
from multiref.errors import ArgumentError

if TYPE_CHECKING:
    from multiref.data import Selection
    from multiref.models import Tokenisation
    from multiref.references import References
    from multiref.references.cost_estimate import Forecast
    from multiref.references.engines import Engine


COLUMNS = ("reference", "wanted", "already there", "to score", "shards", "MB", "completion tokens", "time")


def _tokenisation(
    end: Annotated[bool, "--end/--no-end", "Score the end token too, as TRL does. Default --end."] = True,
    max_length: Annotated[int | None, "Truncate to NUMBER tokens (marked in the scores). Default the model's context."] = None,
    truncation: Annotated[
        Literal["keep_start", "keep_end", "error"], "What stays when a text is too long; error refuses such a text."
    ] = "keep_start",
) -> "Tokenisation":
    from multiref.models import Tokenisation

    return Tokenisation(end=end, max_length=max_length, truncation=truncation)


def _references(
    reference: NamedReferences = [],  # noqa: B006  (typer copies it)
    dtype: Annotated[str | None, "float32, bfloat16, float16; auto: measured. Default float32; on a GPU bfloat16."] = None,
    device: Device = None,
    quantization: Annotated[str | None, "int8, or int4 (needs bitsandbytes). Default none."] = None,
    attention: Annotated[
        list[str] | None, "sdpa, eager, flash_attention_2, …; name=eager for one reference. Default the model's."
    ] = None,
    chat_template_kwargs: Annotated[
        list[str] | None, "For the chat template, as JSON: '{\"enable_thinking\": false}'; name={…} for one reference."
    ] = None,
    *,
    tokenisation: Annotated[Any, Made(_tokenisation)],
) -> "References | None":
    """The references as they were asked for; None for none."""
    from multiref._json import parse_json
    from multiref.models import ModelSpec
    from multiref.references import References

    own = {"quantization": quantization, "attention": attention, "chat_template_kwargs": chat_template_kwargs}
    belong("--reference", reference, dtype=dtype, device=device, **own)
    if not reference:
        return None
    places = by_name("--reference", reference)
    # a server has its own quantization, attention and template
    local = [name for name, at in places.items() if "://" not in at]
    belong("a model as --reference", local, dtype=dtype, device=device, **own)
    kinds = for_each("--attention", attention, local)
    options = for_each("--chat-template-kwargs", chat_template_kwargs, local)
    asked: list[tuple[str, Any]] = []
    for called, at in places.items():
        written = parse_json(options.get(called, "{}"), "--chat-template-kwargs", error=ArgumentError)
        if not isinstance(written, dict):
            raise ArgumentError(f'--chat-template-kwargs {options[called]!r}: expected a JSON object, such as {{"a": true}}.')
        measured = "auto" if dtype == "auto" else None
        special = called in local and (written or called in kinds or quantization is not None or measured is not None)
        model = ModelSpec(at, measured, quantization=quantization, attention=kinds.get(called)) if special else None
        asked.append((called, {"model": model, "tokenisation": {"chat_template_kwargs": written}} if special else at))
    return References(asked, tokenisation=tokenisation, dtype=dtype or "auto", device=device)


def _engine(
    engine: Annotated[str, "local, or ray: one pool of workers per reference on a Ray cluster."] = "local",
    workers: Annotated[int | None, "ray: workers per reference; default all that fit."] = None,
    gpus_per_worker: Annotated[float, "ray: GPUs that each worker reserves."] = 0.0,
    address: Annotated[str | None, "ray: the cluster's address; default a local Ray."] = None,
) -> "Engine | str":
    if engine == "ray":
        from multiref.references.engines.ray import RayEngine

        return RayEngine(workers=workers, gpus=gpus_per_worker, address=address)
    belong("--engine ray", False, workers=workers, gpus_per_worker=gpus_per_worker, address=address)
    return engine


def _forecasting(
    dry_run: Annotated[bool, "--dry-run", "Say what it would take; store nothing."] = False,
    cluster: Annotated[str | None, "Dry run: 2xlocal (measured), 64xH100 (reckoned)."] = None,
    parameters: Annotated[str | None, "Dry run: models that are not here: 7B, 16x7B."] = None,
    pairs: Annotated[str | None, "Dry run: for 10M pairs, say, like those of DATA."] = None,
) -> "tuple[str | None, str | None, int | None] | None":
    """For which cluster, for models of which size, for how many pairs; None where nothing is to be forecast."""
    if dry_run:
        return cluster, parameters, None if pairs is None else round(_number(pairs, "--pairs"))
    belong("--dry-run", False, cluster=cluster, parameters=parameters, pairs=pairs)
    return None


def command(
    data: Data,
    store: Annotated[Path | None, "--store -s", "The folder of scores, made where it is missing."] = None,
    *,
    references: Annotated[Any, Made(_references)],
    chosen: Chosen,
    forecasting: Annotated[Any, Made(_forecasting)],
    runner: Annotated[Any, Made(_engine)],
    shard_size: Annotated[int | None, "Completions per shard, about. Default 1/64 of the job, 256 to 8192."] = None,
    audit: Annotated[str, "How many rows are also scored alone, as a check of the layout: some (a few), or all."] = "some",
) -> "dict[str, Any]":
    """Score pairs under K references, one after another. What is stored already is not scored again;
    a killed run goes on where it was.

    Example: multiref score pairs.jsonl --reference base=./base --reference math=./math --store scores/
    """
    cluster, parameters, many = forecasting or (None, None, None)
    if parameters is not None:
        if cluster is None or references is not None:
            raise ArgumentError("--parameters needs --cluster and replaces --reference. Give --cluster, and one of the two.")
        return _say(_imagined(data, chosen, cluster, parameters, many, shard_size))
    if references is None or store is None:
        raise ArgumentError("Expected --reference name=PATH, once per reference, and --store FOLDER.")
    from multiref.data import read
    from multiref.data.reading import SKIPPED
    from multiref.references.progress import Tally

    if forecasting is not None:
        pairs = read(data, chosen, say=typer.echo, spool=tempfile.gettempdir()).pairs
        own = {"store": store, "shard_size": shard_size, "engine": runner if cluster is None else None}
        return _say(references.estimate_cost(pairs, cluster or "1xlocal", pairs=many, **own))
    found = read(data, chosen, skipped=store / SKIPPED, say=typer.echo, spool=store, on_ray=runner != "local")
    tally = Tally(say=typer.echo)
    scores = references.score(found.pairs, store=store, engine=runner, progress=tally, shard_size=shard_size, audit=audit)
    for name, summary in tally.summaries.items():
        typer.echo(f"{name}: {summary}")
    counts = f"{len(found.pairs):,} pairs, {len(scores):,} different completions"
    typer.echo(f"{counts}, {len(references.names)} reference{'s' * (len(references.names) > 1)} in {store}")
    again = options_of(chosen, name="--data-name")
    return {
        "store": str(store),
        "pairs": len(found.pairs),
        "rows": found.rows,
        "bad_rows": len(found.bad),
        "format": found.format,
        "completions": len(scores),
        "references": tally.summaries,
        "next": f"multiref inspect {shlex.quote(data)}{again} --store {shlex.quote(str(store))}",
    }


def _imagined(
    data: str, chosen: "Selection", cluster: str, parameters: str, pairs: int | None, shard_size: int | None
) -> "Forecast":
    """What it would take with models of which only the size is known."""
    from multiref.data import read
    from multiref.references.cost_estimate import imagine_costs

    copies, times, size = parameters.rpartition("x")
    if times and not re.fullmatch(r"[1-9]\d{0,3}", copies):
        raise ArgumentError(f"--parameters {parameters!r}: expected a size, or how many of it: 7B, 16x7B.")
    return imagine_costs(
        read(data, chosen, say=typer.echo, spool=tempfile.gettempdir()).pairs,
        [size if not times else f"{size}-{number}" for number in range(1, int(copies or 1) + 1)],
        _number(size, "--parameters"),
        cluster,
        shard_size=shard_size,
        pairs=pairs,
    )


def _number(text: str, option: str) -> float:
    """7B, 10M, 500k, 1e7."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d{1,2})?)([kmbKMB]?)", text.replace(",", "").replace("_", ""))
    value = float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[found[2].lower()] if found else 0.0
    if not 1 <= value < 1e15:
        raise ArgumentError(f"{option} {text!r}: expected a number of at least 1, such as 10M or 7B.")
    return value


def _say(found: "Forecast") -> "dict[str, Any]":
    """The forecast as a table, its assumptions below it; and for programs."""
    from multiref.report import Table, print_table
    from multiref.runs.dry_run import span

    rows: dict[tuple[str, ...], list[str]] = {}
    for each in found.references:  # of those that cost the same, one row
        counts = [f"{count:,}" for count in (each.wanted, each.stored, each.missing, each.shards)]
        row = (*counts, f"{each.bytes / 1e6:,.1f}", f"{each.tokens:,}", span(each.seconds))
        rows.setdefault(row, []).append(each.name)
    named = [[names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}, each", *row] for row, names in rows.items()]
    print_table(Table(COLUMNS, named, f"{found.cluster}: {found.basis}. Nothing is stored: --dry-run"))
    parts = {"planning": found.planning}
    for each in found.references:
        for part, seconds in each.parts.items():
            parts[part] = parts.get(part, 0.0) + seconds
    said = ", ".join(f"{part} {span(seconds)}" for part, seconds in parts.items())
    size = sum(each.bytes for each in found.references)
    typer.echo(f"In all {span(found.seconds)}, {found.basis}: {said}; the store grows by {size / 1e6:,.1f} MB.")
    for line in found.assumptions:
        typer.echo(f"  {line}.")
    return {"dry_run": True, **found.facts()}
