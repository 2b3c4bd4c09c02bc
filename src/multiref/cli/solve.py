"""`multiref solve`: the exact optimum of a problem given as numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from multiref.errors import ConfigError, DataError

KEYS = ("reward", "references", "weights", "regularizer", "alpha", "order", "beta")
EXAMPLE = '{"reward": [0, 1, 0], "references": {"base": [0.7, 0.2, 0.1], "math": [0.1, 0.2, 0.7]}, "weights": [0.5, 0.5], "beta": 1.0}'


def command(
    file: Annotated[Path, typer.Argument(help="A JSON file, or - for standard input.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the solution as JSON, log-probabilities in nats.")] = False,
) -> None:
    """Solve: maximise E_π r − β Σ_k w_k D(π‖π_k) over the completions of one prompt, exactly.

    The file holds reward (one number a completion), references (name → probabilities, or a list of them),
    and optionally weights (uniform), beta (0.1) and regularizer:
    ReverseKL (the default), ForwardKL, AlphaDivergence with alpha, or PooledKL with order.

    Example: echo '{"reward": [0, 1], "references": {"base": [0.7, 0.3], "math": [0.2, 0.8]}, "beta": 1.0}' | multiref solve -
    """
    name = "standard input" if str(file) == "-" else str(file)
    problem = _read(file, name)
    names, solution, regularizer = _solve(problem, name)
    if as_json:
        print(
            json.dumps(
                {
                    "log_policy": solution.log_policy.tolist(),
                    "value": float(solution.value),
                    "multiplier": float(solution.multiplier),
                }
            )
        )
        return
    _print(names, problem, solution, regularizer)


def _read(file: Path, name: str) -> dict[str, Any]:
    from multiref.runs import nearest

    try:
        problem = json.loads(sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror}). Expected a JSON file such as {EXAMPLE}") from error
    except ValueError as error:
        raise DataError(f"{name}: not JSON ({error}). Expected for example {EXAMPLE}") from error
    if not isinstance(problem, dict) or "reward" not in problem or "references" not in problem:
        raise DataError(f"{name}: expected an object with reward and references, such as {EXAMPLE}")
    for key in problem:
        if key not in KEYS:
            raise ConfigError(f"{name}: unknown key {key!r}{nearest(key, KEYS)}")
    for key in ("alpha", "order", "beta"):
        if not isinstance(problem.get(key, 1.0), int | float):
            raise DataError(f"{name}: {key} is {problem[key]!r}; expected a number.")
    return problem


def _solve(problem: dict[str, Any], name: str) -> tuple[list[str], Any, Any]:
    import torch

    import multiref as mr

    references = problem["references"]
    named = references if isinstance(references, dict) else {f"reference {k + 1}": row for k, row in enumerate(references)}
    try:
        reward = torch.tensor(problem["reward"], dtype=torch.float64)
        rows = [torch.tensor(row, dtype=torch.float64) for row in named.values()]
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: reward and references are lists of numbers ({error}).") from error
    for who, row in zip(named, rows):
        if row.shape != reward.shape or bool((row < 0).any()) or not bool((row.sum() - 1).abs() < 1e-6):
            raise DataError(
                f"{name}: the probabilities of {who!r} are {row.numel()} numbers that sum to {float(row.sum()):.6g}; expected {reward.numel()} (one for each reward), "
                "none negative, with sum one."
            )
    weights = problem.get("weights")
    if isinstance(weights, dict):
        for who in weights.keys() - named.keys():
            raise DataError(
                f"{name}: a weight is given for {who!r}, which is no reference. Expected names among {', '.join(named)}."
            )
        weights = [weights.get(who, 0.0) for who in named]
    kinds = {
        "ReverseKL": lambda: mr.ReverseKL(weights),
        "ForwardKL": lambda: mr.ForwardKL(weights),
        "AlphaDivergence": lambda: mr.AlphaDivergence(weights, alpha=float(problem.get("alpha", 0.5))),
        "PooledKL": lambda: mr.PooledKL(weights, order=float(problem.get("order", -1.0))),
    }
    kind = problem.get("regularizer", "ReverseKL")
    if kind not in kinds:
        raise ConfigError(f"{name}: unknown regularizer {kind!r}. Expected one of {', '.join(kinds)}.")
    regularizer = kinds[kind]()
    solution = mr.exact.solve(reward, torch.stack(rows).log(), regularizer, beta=float(problem.get("beta", 0.1)))
    return list(named), solution, regularizer


def _print(names: list[str], problem: dict[str, Any], solution: Any, regularizer: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    named = problem["references"]
    rows = list(named.values()) if isinstance(named, dict) else named
    table = Table(title=f"{regularizer!r}, β = {problem.get('beta', 0.1):g}")
    for column in ("completion", "reward", *names, "optimum π*"):
        table.add_column(column, justify="right")
    for y, p in enumerate(solution.policy.tolist()):
        table.add_row(str(y), f"{problem['reward'][y]:g}", *(f"{row[y]:.6g}" for row in rows), f"{p:.12g}")
    console = Console()
    console.print(table)
    console.print(
        f"value J* = {float(solution.value):.12g}    multiplier λ = {float(solution.multiplier):.12g}", highlight=False
    )
