"""`multiref solve`: solve a multi-reference problem given as numbers, exactly."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from multiref._files import read_text
from multiref._json import parse_json
from multiref._progress import rest
from multiref.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from multiref.exact import Solution
    from multiref.runs.yaml_values import Plain

EXAMPLE = '{"reward": [0, 1], "references": {"base": [0.7, 0.3], "math": [0.2, 0.8]}, "weights": [0.5, 0.5], "beta": 1.0}'
LARGEST = 2**24  # bytes of a problem
SHOWN, SHOWN_REFERENCES = 100, 12  # in the table
Kind = Literal["ReverseKL", "ForwardKL", "AlphaDivergence", "PooledKL"]


def command(file: Annotated[Path, typer.Argument(help="A JSON file, or - for standard input.")]) -> dict[str, Any]:
    """Solve: maximise E_π r − β Σ_k w_k D(π‖π_k) over the completions of one prompt, exactly.

    The file holds reward (one number a completion), references (name → probabilities, or a list of them),
    and optionally weights (uniform), beta (0.1) and regularizer: ReverseKL (the default), ForwardKL,
    AlphaDivergence with alpha (0.5), or PooledKL with order (-1).

    Example: echo '{"reward": [0, 1], "references": {"base": [0.7, 0.3], "math": [0.2, 0.8]}, "beta": 1.0}' | multiref solve -
    """
    import multiref as mr
    from multiref.report import Table, print_table
    from multiref.runs import Document
    from multiref.runs.strict import Strict

    class Problem(Strict):
        reward: list[float]
        references: dict[str, list[float]]
        weights: dict[str, float] | list[float] | None = None
        regularizer: Kind = "ReverseKL"
        alpha: float = 0.5
        order: float = -1.0
        beta: float = 0.1

    name = "standard input" if str(file) == "-" else str(file)
    asked = Document(_read(file, name), name).validate(Problem)
    reward, logps = _tensors(asked.reward, asked.references, name)
    weights = _weights(asked.weights, list(asked.references), name)
    own = {"AlphaDivergence": {"alpha": asked.alpha}, "PooledKL": {"order": asked.order}}
    regularizer = getattr(mr, asked.regularizer)(weights, **own.get(asked.regularizer, {}))
    solution = mr.exact.solve(reward, logps, regularizer, beta=asked.beta)
    _check_solved(solution, name)
    value, multiplier = float(solution.value), float(solution.multiplier)
    shown = list(asked.references)[:SHOWN_REFERENCES]
    rows = [
        [str(y), f"{asked.reward[y]:g}", *(f"{asked.references[k][y]:.6g}" for k in shown), f"{p:.12g}"]
        for y, p in enumerate(solution.policy[:SHOWN].tolist())
    ]
    print_table(Table(["completion", "reward", *shown, "optimum π*"], rows, f"{regularizer!r}, β = {asked.beta:g}"))
    if len(asked.reward) > SHOWN or len(shown) < len(asked.references):
        many = f"{len(asked.reward):,} completions and {len(asked.references):,} references"
        print(f"There are {many}; the table shows the first {SHOWN} and {SHOWN_REFERENCES}, --json gives the whole optimum.")
    print(f"value J* = {value:.12g}    multiplier λ = {multiplier:.12g}")
    return {"log_policy": solution.log_policy.tolist(), "value": value, "multiplier": multiplier}  # nats; null is −∞


def _read(file: Path, name: str) -> "dict[str, Plain]":
    expected = f"Expected for example {EXAMPLE}"
    if str(file) == "-":
        if sys.stdin.isatty():
            rest()
        content = sys.stdin.buffer.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise DataError(f"{name}: more than {LARGEST:,} bytes. {expected}")
        problem = parse_json(content, name, constants=True, expected=expected)
    else:
        problem = parse_json(read_text(file, "a JSON file", largest=LARGEST), name, constants=True, expected=expected)
    if not isinstance(problem, dict) or "reward" not in problem or "references" not in problem:
        raise DataError(f"{name}: expected an object with reward and references, such as {EXAMPLE}")
    if isinstance(references := problem["references"], list):
        problem["references"] = {f"reference {k + 1}": row for k, row in enumerate(references)}
    return problem


def _tensors(reward: list[float], named: dict[str, list[float]], name: str) -> "tuple[Tensor, Tensor]":
    """Rewards [Y] and log-probabilities [K, Y], in float64."""
    import torch

    for who, row in named.items():
        if len(row) != len(reward) or min(row, default=0) < 0 or not abs(sum(row) - 1) < 1e-6:
            found = f"the probabilities of {who!r} are {len(row)} numbers that sum to {sum(row):.6g}"
            expected = f"expected {len(reward)} (one for each reward), none negative, with sum one"
            raise DataError(f"{name}: {found}; {expected}.")
    return torch.tensor(reward, dtype=torch.float64), torch.tensor(list(named.values()), dtype=torch.float64).log()


def _check_solved(solution: "Solution", name: str) -> None:
    """Numbers at the edge of float64 (α of 10³⁰⁰, say) may leave nothing to divide by: that is no solution."""
    total = float(solution.policy.sum())
    if not abs(total - 1) < 1e-6 or not math.isfinite(float(solution.value)):
        raise DataError(
            f"{name}: has no solution in float64: the optimum would sum to {total:.6g}, value {float(solution.value):g}; "
            "expected rewards, beta, alpha and order whose powers and exponentials are finite."
        )


def _weights(given: dict[str, float] | list[float] | None, names: list[str], name: str) -> list[float] | None:
    """In the order of the references; one that is not named has none."""
    if not isinstance(given, dict):
        return given
    for who in given.keys() - set(names):
        expected = f"Expected names among {', '.join(names)}."
        raise DataError(f"{name}: a weight is given for {who!r}, which is no reference. {expected}")
    return [given.get(who, 0.0) for who in names]
