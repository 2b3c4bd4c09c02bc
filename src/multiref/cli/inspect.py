"""`multiref inspect`: does a second reference help me? The evidence in your scores, and a verdict."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiref.cli.options import ChosenOtherName, Data, Seed, Store, belong, by_name, options_of
from multiref.errors import ArgumentError

if TYPE_CHECKING:
    from multiref.data import Pair
    from multiref.evaluation import Inspection

ESCORT_PROMPTS = 3  # after which the escort is measured, of those that fit among so many pairs
LOOKED_AT = 1000


def command(
    data: Data,
    store: Store,
    chosen: ChosenOtherName,
    name: Annotated[list[str] | None, "--name -n", "Only these references; default all in the store. Repeatable."] = None,
    reference: Annotated[
        list[str] | None,
        "--reference -r",
        "name=PATH: also measure KL and disagreement per token on a sample, and where the optimum would go. Once per "
        "reference.",
    ] = None,
    sample: Annotated[int | None, typer.Option(min=2, help="Completions in the sample of --reference. Default 64.")] = None,
    data_name: Annotated[str | None, "Configuration of a data set that has several."] = None,
    plan: Annotated[bool, "--plan", "Also say how many pairs would show each reference's effect."] = False,
    gain: Annotated[float | None, "With --plan: an effect of this size, nats a pair, instead of the one found."] = None,
    html: Annotated[Path | None, "Write a page with figures."] = None,
    seed: Seed = 0,
) -> dict[str, Any]:
    """What stored scores say about each reference and about mixing them, and a verdict: which references, which weights, more
    than one at all?

    Example: multiref inspect pairs.jsonl --store scores/ --html inspect.html
    """
    from multiref._files import check_writable
    from multiref.data import read
    from multiref.evaluation.inspection import inspect, plan_table, tables, token_lines, write_page
    from multiref.references import read_scores
    from multiref.report import print_table

    belong("--reference", reference, sample=sample)
    if html is not None:
        check_writable(html)
    models, scores = by_name("--reference", reference), read_scores(store, name)
    if strange := [each for each in models if each not in scores.names]:
        raise ArgumentError(f"--reference {strange[0]}: the scores are of {', '.join(scores.names)}; name it as they do.")
    pairs = read(data, replace(chosen, name=data_name), say=typer.echo, spool=gettempdir()).pairs
    found = _with_tokens(inspect(pairs, scores, seed=seed), pairs, models, sample or 64, seed)
    sizes = found.plan(gain) if plan or gain is not None else None
    for table in [*tables(found), *([plan_table(sizes, gain)] if sizes else [])]:
        print_table(table)
    print("\n".join((*token_lines(found), "\nVerdict", *found.verdict.sentences)))
    if html is not None:
        write_page(html, found, data=str(data), store=str(store))
        print(f"Page: {html}")
    held = " ".join(f"--reference {shlex.quote(each)}=MODEL" for each in found.verdict.use or found.sound)
    same = options_of(replace(chosen, name=data_name, rankings="ends", bad_rows="refuse", limit=None))  # as `init` has them
    where = f"--data {shlex.quote(str(data))}{same} --store {shlex.quote(str(store))}"
    planned = {} if sizes is None else {"plan": [vars(size) for size in sizes]}
    return {**found.as_dict(), **planned, "next": f"multiref init run.yaml --model MODEL {held} {where}"}


def _with_tokens(found: "Inspection", pairs: Sequence["Pair"], models: dict[str, str], sample: int, seed: int) -> "Inspection":
    """Add what needs the models themselves, where they were given and have one vocabulary; else say why it is missing."""
    from multiref.errors import ModelError
    from multiref.references import References
    from multiref.references.token_level import measure_token_level

    models = {name: where for name, where in models.items() if name in found.sound}
    if len(models) < 2:
        why = "Not measured: give the models themselves, --reference name=PATH for at least two sound references of the store."
        return replace(found, not_measured=why)
    try:
        found = replace(found, token_level=measure_token_level(References(models), pairs, completions=sample))
        return _with_escort(found, pairs, models, seed)
    except ModelError as error:
        return replace(found, not_measured=f"Not measured: {error}")


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
    some = pairs[:: max(1, len(pairs) // LOOKED_AT)]
    unique = list({repr(pair.prompt): pair.prompt for pair in some}.values())
    room = min(held, default=2**31) - new_tokens
    encoded = zip(unique, opened[0].encode([Item(prompt, ()) for prompt in unique]))
    fitting = [prompt for prompt, ids in encoded if len(ids.prompt_ids) <= room]
    if not fitting:
        return found
    few = [fitting[i * len(fitting) // ESCORT_PROMPTS] for i in range(min(ESCORT_PROMPTS, len(fitting)))]
    return found.with_escort(measure_escort(references, few, list(named.values()), new_tokens=new_tokens, seed=seed))
