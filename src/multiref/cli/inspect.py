"""`multiref inspect`: does a second reference help me?"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multiref.cli.options import (
    Bad,
    BadRows,
    Column,
    Data,
    Limit,
    Ranked,
    Rankings,
    Seed,
    Split,
    Store,
    name_and_path,
    selection,
)
from multiref.cli.voice import plain

if TYPE_CHECKING:
    from multiref.data import Pair
    from multiref.evaluation import Inspection
    from multiref.evaluation.inspection.sample_size import SampleSize

ESCORT_PROMPTS = 3  # after which the escort is measured


def command(
    data: Data,
    store: Store,
    name: Annotated[
        list[str] | None, typer.Option("--name", "-n", help="Only these references; default all in the store. Repeatable.")
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            "--reference",
            "-r",
            help="name=PATH: also measure KL and disagreement per token on a sample, and where the optimum would go. "
            "Once per reference.",
        ),
    ] = None,
    sample: Annotated[int, typer.Option(min=2, help="Completions in that sample.")] = 64,
    data_name: Annotated[str | None, typer.Option(help="Configuration of a data set that has several.")] = None,
    split: Split = None,
    column: Column = None,
    rankings: Ranked = Rankings.ends,
    bad_rows: Bad = BadRows.refuse,
    limit: Limit = None,
    plan: Annotated[bool, typer.Option("--plan", help="Also say how many pairs would show each reference's effect.")] = False,
    gain: Annotated[
        float | None, typer.Option(help="With --plan: an effect of this size, nats a pair, instead of the one found.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with figures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON instead of tables.")] = False,
    seed: Seed = 0,
) -> None:
    """What stored scores say about each reference and about mixing them, and a verdict: which references, which weights, more
    than one at all?

    Example: multiref inspect pairs.jsonl --store scores/ --html inspect.html
    """
    from multiref.data import read
    from multiref.evaluation.inspection import inspect, write_page
    from multiref.references import read_scores

    pairs = read(data, selection(data_name, split, column, rankings, bad_rows, limit), say=_aside).pairs
    found = _with_tokens(inspect(pairs, read_scores(store, name), seed=seed), pairs, reference or [], sample, seed)
    sizes = found.plan(gain) if plan or gain is not None else None
    if html is not None:
        write_page(html, found, data=str(data), store=str(store))
    if as_json:
        planned = {} if sizes is None else {"plan": [vars(size) for size in sizes]}
        typer.echo(json.dumps(plain(found.as_dict() | planned), indent=1, ensure_ascii=False))
    else:
        _print(found, sizes, gain, f"--data {shlex.quote(str(data))} --store {shlex.quote(str(store))}")
    if html is not None:
        typer.echo(f"Page: {html}", err=True)


def _print(found: "Inspection", sizes: "list[SampleSize] | None", gain: float | None, where: str) -> None:
    """Tables, the plan where it was asked for, the verdict, and what to run next."""
    from multiref.evaluation.inspection import plan_table, tables, token_lines
    from multiref.report import print_table

    for table in [*tables(found), *([] if sizes is None else [plan_table(sizes, gain)])]:
        print_table(table)
    typer.echo("\n".join((*token_lines(found), "\nVerdict", *found.verdict.sentences)))
    held = " ".join(f"--reference {each}=MODEL" for each in found.verdict.use or found.sound)
    typer.echo(f"Next: multiref init run.yaml --model MODEL {held} {where}")


def _with_tokens(found: "Inspection", pairs: Sequence["Pair"], given: list[str], sample: int, seed: int) -> "Inspection":
    """Add what needs the models themselves, where they were given and have one vocabulary; else say why it is missing."""
    from multiref.errors import ModelError
    from multiref.references import References
    from multiref.references.token_level import measure_token_level

    models = {key: where for key, where in map(name_and_path, given) if key in found.sound}
    if len(models) < 2:
        why = "Not measured: give the models themselves, --reference name=PATH for at least two sound references of the store."
        return found.without_token_level(why)
    try:
        found = found.with_token_level(measure_token_level(References(models), pairs, completions=sample))
        return _with_escort(found, pairs, models, seed)
    except ModelError as error:
        return found.without_token_level(f"Not measured: {error}")


def _with_escort(found: "Inspection", pairs: Sequence["Pair"], models: dict[str, str], seed: int) -> "Inspection":
    """Add the escort of the recommended references, where their models were given; of the given ones at equal weights else."""
    from multiref.evaluation.inspection.escort import LONGEST, measure_escort
    from multiref.references import References
    from multiref.references.local import local_reference
    from multiref.references.protocol import Item

    named = dict(zip(found.verdict.use, found.verdict.weights))
    if len(named) < 2 or not named.keys() <= models.keys():
        named = {name: 1 / len(models) for name in models}
    references = References({name: models[name] for name in named})
    opened = [local_reference(name, references.open(name)) for name in references.names]
    held = [each.max_length for each in opened if each.max_length is not None]
    new_tokens = max(8, min(LONGEST, 2 * round(found.length), *(length // 2 for length in held)))
    unique = {repr(pair.prompt): pair.prompt for pair in pairs}
    room = min(held, default=2**31) - new_tokens
    encoded = zip(unique.values(), opened[0].encode([Item(prompt, ()) for prompt in unique.values()]))
    fitting = [prompt for prompt, ids in encoded if len(ids.prompt_ids) <= room]
    if not fitting:
        return found
    few = [fitting[i * len(fitting) // ESCORT_PROMPTS] for i in range(min(ESCORT_PROMPTS, len(fitting)))]
    return found.with_escort(measure_escort(references, few, list(named.values()), new_tokens=new_tokens, seed=seed))


def _aside(text: str) -> None:
    typer.echo(text, err=True)
