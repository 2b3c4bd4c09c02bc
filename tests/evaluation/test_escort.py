"""What an escort of several prompts says is the mean over them, with the error of a mean."""

from types import SimpleNamespace

import pytest
import torch

from multiref import References
from multiref.evaluation.inspection import escort


class Drawn(list):
    """Draws after two prompts; free and forced are told apart by their numbers."""

    def __init__(self, scale: float) -> None:
        super().__init__(SimpleNamespace(median_length=n, lengths=torch.tensor([n, n, 9]), ids=[(1,)] * 3,
                                         log_weights=torch.tensor([-2.0, -3.0, -4.0]) - n) for n in (4.0, 8.0))  # fmt: skip
        self.log_partition, self.error = torch.tensor([-1.0, -3.0]) * scale, torch.tensor([0.3, 0.4]) * scale


def test_numbers_of_two_prompts(monkeypatch):
    monkeypatch.setattr(escort, "sample", lambda *a, min_new_tokens=0, **more: Drawn(2.0 if min_new_tokens else 1.0))
    found = escort.measure_escort(References({"a": "a", "b": "b"}), ["x", "y"], (0.5, 0.5), new_tokens=9)
    assert (found.disagreement, found.forced) == (2.0, 4.0)
    assert found.error == pytest.approx(0.25) and found.forced_error == pytest.approx(0.5), "√(0.3² + 0.4²) / 2"
    assert found.median_length == 6 and found.lengths == (6, 6) and found.token_length == 6
    of_draws = torch.tensor([[6.0, 7.0, 8.0], [10.0, 11.0, 12.0]]).mean(1) - torch.tensor(3.0).log()
    assert found.token_kl == pytest.approx(float((of_draws + torch.tensor([-1.0, -3.0])).mean()))
