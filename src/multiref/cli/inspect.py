"""`multiref inspect`: does a second reference help me?"""

from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    data: Annotated[Path, typer.Argument(help="The pairs that were scored.", show_default=False)],
    store: Annotated[
        Path, typer.Option("--store", "-s", help="The folder of scores from `multiref score`.", show_default=False)
    ],
    name: Annotated[
        list[str] | None, typer.Option("--name", "-n", help="Only these references; default all in the store. Repeatable.")
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            "--reference", "-r", help="name=PATH: also measure KL and disagreement per token on a sample. Once per reference."
        ),
    ] = None,
    sample: Annotated[int, typer.Option(min=2, help="Completions in that sample.")] = 64,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pairs.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with figures.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON instead of tables.")] = False,
    seed: Annotated[int, typer.Option(help="Of the split into folds and of the resampling.")] = 0,
) -> None:
    """What stored scores say about each reference and about mixing them, and a verdict: which references, which weights, more than one at all?

    Example: multiref inspect pairs.jsonl --store scores/ --html inspect.html
    """
    from multiref.data import read_pairs
    from multiref.evaluation.inspection import inspect
    from multiref.references import read_scores

    pairs = read_pairs(data, limit=limit)
    found = inspect(pairs, read_scores(store, name), seed=seed)
    found = _with_tokens(found, pairs, reference or [], sample)
    if html is not None:
        from multiref.cli.inspect_page import write

        write(html, found, data=str(data), store=str(store))
    if json:
        import json as text

        typer.echo(text.dumps(_plain(found.as_dict()), indent=1, ensure_ascii=False))
    else:
        from multiref.cli.inspect_tables import show

        show(found)
    if html is not None:
        typer.echo(f"Page: {html}", err=True)


def _with_tokens(found: Any, pairs: Any, given: list[str], sample: int) -> Any:
    """Add what needs the models themselves, where they were given and have one vocabulary; else say why it is missing."""
    from multiref.cli.score import named
    from multiref.errors import ModelError

    models = {key: where for key, where in map(named, given) if key in found.sound}
    if len(models) < 2:
        why = "Not measured: give the models themselves, --reference name=PATH for at least two sound references of the store."
        return found.without_token_level(why)
    from multiref.references import References
    from multiref.references.token_level import measure_token_level

    try:
        return found.with_token_level(measure_token_level(References(models), pairs, completions=sample))
    except ModelError as error:
        return found.without_token_level(f"Not measured: {error}")


def _plain(value: Any) -> Any:
    """JSON has no infinity: null instead."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and value in (float("inf"), float("-inf")) else value
