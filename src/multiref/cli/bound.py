"""`multiref bound`: evaluate a bound of the theory on your numbers."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiref.cli.options import belong, weights_of
from multiref.errors import ArgumentError, StoreError, WeightsError

if TYPE_CHECKING:
    from multiref.bounds import Bound, CoverageEstimate, Statement


app = typer.Typer(add_completion=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bound(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="The statement; leave it out to list them all.")] = None,
    solve: Annotated[str | None, "Find the value of this quantity (samples, say) at which the bound equals --target."] = None,
    target: Annotated[float | None, "What the bound should equal."] = None,
    plot: Annotated[Path | None, "Draw the bound against samples (or iterations) into this PNG."] = None,
    from_scores: Annotated[
        Path | None, "A store of scores: fills in disagreement and coverage of reverse KL, estimated from its references."
    ] = None,
    weights: Annotated[
        str | None,
        "Weights for --from-scores: by name, as math=0.3,base=0.7, or numbers in the order of the names that it "
        "prints. Default uniform.",
    ] = None,
) -> "dict[str, Any]":
    """Evaluate a bound: value, terms, rate, assumptions, source, and whether it says anything.

    The statement's quantities are options of the same name. Leave them out to see which there are.

    Example: multiref bound reverse-kl-suboptimality --samples 1e5 --beta 0.1 --coverage 4 --reward-max 1 --class-size 2000
    """
    belong("--from-scores", from_scores, weights=weights)
    belong("--solve", solve, target=target)
    belong("a statement and its quantities", name and context.args, solve=solve, plot=plot)
    estimate = _estimate(from_scores, weights) if from_scores else None
    estimated = {"estimate": vars(estimate)} if estimate else {}
    if estimate:
        print(estimate, end="\n\n")
    if name is None:
        if not estimate:
            print(_listing())
        from multiref import bounds

        return {"statements": {each: statement.title for each, statement in bounds.statements().items()}, **estimated}
    statement = _statement(name)
    given = _quantities(statement, context.args)
    if estimate:
        for quantity, value in (("disagreement", estimate.disagreement), ("coverage", estimate.coverage_at_least)):
            if name.startswith("reverse-kl") and quantity in statement.parameters:  # C of others is of another policy
                given.setdefault(quantity, value)
    if not given:
        print(statement)
        return {"name": name, "quantities": list(statement.parameters), **estimated}
    solve = solve and solve.replace("-", "_")
    if solve and solve not in given and solve in statement.parameters:
        given[solve] = 0.5 if solve == "delta" else 1.0  # a place to start from; the solution does not depend on it
    result = statement(**given)
    if solve:
        result = _solved(result, solve, target)
    print(result)
    if plot:
        _plot(result, plot)
        print(f"  figure   {plot}")
    kept = ("value", "terms", "trivial", "vacuous", "rate", "assumptions", "citation", "status", "quantities")
    return {"name": name, **{each: getattr(result, each) for each in kept}, **estimated}


def _listing() -> str:
    from multiref import bounds

    rows = [(name, each.status, each.title) for name, each in bounds.statements().items()]
    bare = [(name, "rate only", f"{one.theorem}: {one.rate}; see {one.instead}") for name, one in bounds.UNAVAILABLE.items()]
    known, rates = ("\n".join(f"  {name:<36} {what:<12} {said}" for name, what, said in each) for each in (rows, bare))
    without = "Without constants in the sources, and so without a value:"
    return "\n\n".join(("Statements (multiref bound NAME shows the quantities of one):", known, without, rates))


def _statement(name: str) -> "Statement":
    from multiref import bounds
    from multiref.runs.sentences import nearest

    known = bounds.statements()
    if name in bounds.UNAVAILABLE:
        raise ArgumentError(f"bound: {bounds.UNAVAILABLE[name]}; use that one")
    if name not in known:
        raise ArgumentError(f"bound: found {name!r}, expected the name of a statement{nearest(name, known)}")
    return known[name]


def _quantities(statement: "Statement", arguments: list[str]) -> dict[str, float]:
    """`--samples 1e5 --class-size=2000` as numbers by name."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") and "=" in word else [word])]
    expected = ", ".join("--" + q.replace("_", "-") for q in statement.parameters)
    given: dict[str, float] = {}
    for option, value in zip(words[::2], [*words[1::2], ""]):
        quantity = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or quantity not in statement.parameters or quantity in given:
            raise ArgumentError(f"{statement.name}: found {option!r}, expected one of {expected}, each once")
        try:
            given[quantity] = float(value)
        except ValueError:
            raise ArgumentError(
                f"{statement.name}: found {option} {value!r}, expected a number after it, as in {option} 1e4"
            ) from None
    return given


def _solved(result: "Bound", quantity: str, target: float | None) -> "Bound":
    if target is None:
        raise ArgumentError("--solve: found no --target, expected the value that the bound should reach, as in --target 0.01")
    solution = result.solve_for(quantity, target=target)
    print(f"{quantity} = {solution:,.6g} for a bound of {target:g}", end="\n\n")
    return result.at(**{quantity: solution})


def _plot(result: "Bound", path: Path) -> None:
    from multiref.report.figures import Curve, Plot, draw

    axis = next((q for q in ("samples", "iterations") if q in result.quantities), None)
    if axis is None:
        raise ArgumentError(f"--plot: {result.statement.name} depends neither on samples nor on iterations; leave --plot out")
    centre = max(result.quantities[axis], 100.0)
    x = tuple(max(centre * 10 ** (step / 10), 2.0) for step in range(-30, 31))
    curves = (
        Curve(f"{result.statement.name} ({result.status})", x, tuple(result.at(**{axis: n}).value for n in x), "bound"),
        Curve("trivial range", x, (result.trivial,) * len(x), "trivial"),
        Curve("here", (result.quantities[axis],), (result.value,), "measured"),
    )
    draw(Plot(axis, "bound", curves), path, title=result.statement.formula)


def _estimate(store: Path, weights: str | None) -> "CoverageEstimate":
    """What the stored scores say about their references, without completions that some reference truncated, and those to which
    no reference of positive weight gives mass: nobody draws them."""
    from multiref import bounds
    from multiref._logspace import NEG_INF
    from multiref.references.stored import read_scores
    from multiref.regularizers import check_weights

    scores = read_scores(store)
    whole = ~scores.truncated.any(0)
    if not bool(whole.any()):
        raise StoreError(
            f"{store}: every completion was truncated by some reference, expected whole ones; score with a longer context"
        )
    given = check_weights(None if weights is None else _weights(weights, scores.names), len(scores.names))
    drawn = (scores.logps[given > 0] > NEG_INF).any(0)
    if forbidden := int((whole & ~drawn).sum()):
        print(f"{store}: completions left out, to which no reference of positive weight gives mass: {forbidden:,}")
    whole &= drawn
    if not bool(whole.any()):
        raise StoreError(f"{store}: no reference gives any whole completion mass; score completions that some reference draws")
    estimate = bounds.coverage_from_scores(scores.logps[:, whole], given)
    tokens = float(scores.lengths[:, whole].double().mean())
    print(f"{store}: {', '.join(scores.names)}; {int(whole.sum()):,} whole completions, {tokens:.1f} tokens on average")
    print(f"  disagreement a token  {estimate.disagreement / tokens:.4g} nats")
    return estimate


def _weights(text: str, names: tuple[str, ...]) -> tuple[float, ...] | None:
    """`0.5,0.5` in the store's order, or `math=0.3,base=0.7` by name."""
    parts = text.split(",")
    with contextlib.suppress(ValueError):  # which an ArgumentError is, too
        return weights_of(list(names), parts) if "=" in text else tuple(map(float, parts))
    raise WeightsError(
        f"--weights: found {text!r}, expected numbers with commas between, as 0.5,0.5 for {', '.join(names)}, or by name, as "
        f"{','.join(f'{name}=0.5' for name in names)}"
    )
