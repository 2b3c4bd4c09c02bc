"""The page on bounds names every statement, with its status, and its printed numbers are what the code gives."""

from pathlib import Path

import pytest

from multiref import bounds

PAGE = Path(__file__).parents[2] / "docs" / "bounds.md"


@pytest.mark.skipif(not PAGE.exists(), reason="no docs beside an installed package")
def test_page_and_code_agree():
    text = PAGE.read_text(encoding="utf-8")
    for name, statement in bounds.statements().items():
        assert f"| `{name}` | {statement.title} | {statement.status} |" in text, name
        for quantity in statement.parameters:
            assert f"- `{quantity}`: {bounds.describe(quantity)}" in text
    bound = bounds.reverse_kl_suboptimality(samples=1e5, beta=0.1, coverage=4, reward_max=1, class_size=2000)
    assert f"# {bound.solve_for('samples', target=0.01)}: the sample complexity" in text
