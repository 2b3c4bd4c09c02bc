"""Every claim in its quick form, with the verdict that the ledger carries; slopes; refusals; the ledger resumes."""

import json
import sys

import pytest
import torch

import multiref_lab as lab
from multiref import bounds
from multiref.errors import ArgumentError, OutputError
from multiref.report import write_whole
from multiref_lab import statements
from multiref_lab.claim import Claim, Effort, Measurement, Rule, all_hold, claim, exactly, near
from multiref_lab.stats import bootstrap_mean, bound_values, fit_slope, resample

NOT_VERIFIED = {
    "forward-kl-learns-slower": "refuted",
    "several-references-reduce-overfitting": "refuted",
    "several-references-increase-diversity": "convention-dependent",
    "stability-theorem-3-at-practical-n": "vacuous",
    "figure-suboptimality-against-n": "convention-dependent",
    "bilevel-seven-halves": "convention-dependent",
    "bilevel-win-rate": "refuted",
    "private-advertised-factor": "refuted",
    "table-7b-win-rates": "not testable here",
    "figure-1-exact-beats-mrpo-and-single": "not testable here",
}


LONG = {  # five seconds and more, even in quick form
    *("bilevel-labels", "bilevel-transformers", "bilevel-transformers-misspecified", "bilevel-off-gibbs", "bilevel-rates"),
    *("bilevel-two-labels", "bilevel-weak-domination"),
}


@pytest.mark.parametrize(
    "each", [pytest.param(c, marks=[pytest.mark.slow] * (c.name in LONG), id=c.name) for c in lab.claims()]
)
def test_claim_has_the_verdict_of_the_ledger(each: Claim):
    outcome = lab.verify(each.name)
    assert outcome.verdict == NOT_VERIFIED.get(each.name, "verified"), str(outcome)
    assert each.name in str(outcome) and each.source in str(outcome)


def test_claims_are_told_apart_by_name_and_by_who_says_them():
    names = [claim.name for claim in lab.claims()]
    assert len(names) == len(set(names)) >= 40
    assert {claim.status for claim in lab.claims()} == {"found", "derived"}


def test_a_claim_is_decided_by_its_numbers():
    """The same experiment with the printed rate of forward KL predicted is refuted."""
    right = Measurement([near("slope", -1.0, -0.97, 0.1)])
    wrong = Measurement([near("slope", -0.5, -0.97, 0.1)])
    assert all_hold(right) == "verified" and all_hold(wrong) == "refuted"
    assert all_hold(Measurement([exactly("violations", 0, 1)])) == "refuted"


def test_a_rule_gives_the_verdict_that_its_words_open_with():
    right, wrong = (Measurement([exactly("violations", 0, found)]) for found in (0, 1))
    vacuous = Rule("vacuous if there is no violation")
    assert vacuous(right) == "vacuous" and vacuous(wrong) == "refuted"
    assert Rule("convention-dependent if so")(right) == "convention-dependent"
    assert Rule("verified if so; vacuous if not", lambda measurement: "vacuous")(wrong) == "vacuous"
    with pytest.raises(ArgumentError, match="convincing"):
        Rule("convincing if there is no violation")


NEW = """
from multiref.report.figures import Plot
from multiref_lab.claim import claim, exactly

@claim("two-and-two", group="MRPO", statement="2 + 2 = 4.", source="DERIVED, arithmetic", predicts="4")
def two_and_two(effort):
    yield exactly("sum", 4, 2 + 2)
    yield "By hand."
    yield Plot("n", "sum", ())
    yield exactly("product", 4, 2 * 2)
    yield "Twice."
"""


def test_a_claim_is_a_function_in_a_file_that_nothing_lists(tmp_path, monkeypatch):
    (tmp_path / "sums.py").write_text(NEW)
    monkeypatch.setattr(statements, "__path__", [*statements.__path__, str(tmp_path)])
    lab.claims.cache_clear()
    try:
        outcome = lab.verify("two-and-two")
        names = [claim.name for claim in lab.claims()]
    finally:
        lab.claims.cache_clear()
        sys.modules.pop("multiref_lab.statements.sums")
    assert outcome.verdict == "verified" and outcome.claim.status == "derived" and outcome.claim.source == "arithmetic"
    found = outcome.measurement
    assert [check.what for check in found.checks] == ["sum", "product"] and found.note == "By hand. Twice."
    assert found.figure is not None and found.figure.x_label == "n"
    assert names[names.index("two-and-two") - 1].startswith("mrpo-")
    with pytest.raises(ArgumentError, match="DERIVED, where"):
        claim("three", group="MRPO", statement="", source="a paper", predicts="")
    with pytest.raises(ArgumentError, match="group"):
        claim("three", group="sums", statement="", source="FOUND, a paper", predicts="")


def test_slopes_are_recovered_with_their_uncertainty():
    """y = 3 x^{−3/2} times lognormal noise: slope −1.5, and an interval of the size that the noise predicts (σ/√(S Σ(log x −
    mean)²)).
    """
    x = torch.logspace(2, 5, 16, dtype=torch.float64)
    noise = torch.randn(400, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = 3 * x**-1.5 * (0.3 * noise).exp()
    slope = fit_slope(x.tolist(), y)
    top = x[x >= 1e4 * (1 - 1e-9)].log()
    error = 0.3 / (400 * ((top - top.mean()) ** 2).sum()) ** 0.5
    assert abs(slope.value + 1.5) < 4 * error and slope.low < -1.5 < slope.high
    assert 2 * 1.5 * error < slope.high - slope.low < 2 * 2.6 * error
    with_knee = torch.where(x < 9_000, torch.full_like(x, 100.0), x**-1.0).expand(30, -1)
    assert fit_slope(x.tolist(), with_knee).value == pytest.approx(-1, abs=1e-9)
    for x, y in (([1.0, 100.0], torch.ones(5, 2)), ([1.0, 2.0, 4.0, 8.0], torch.tensor([[3.0, 2.0, 1.0, 0.0]]))):
        with pytest.raises(ArgumentError, match="slope"):
            fit_slope(x, y)
    drawn = resample(7, torch.Generator().manual_seed(3))
    assert (drawn.sum(1) == 7).all() and abs(float((drawn[:, 0] == 0).double().mean()) - (6 / 7) ** 7) < 0.06
    mean = bootstrap_mean(noise[:, 0])
    assert mean.low < noise[:, 0].mean() < mean.high and 0.15 < mean.high - mean.low < 0.25
    vetoed = bootstrap_mean(torch.cat((torch.tensor([-torch.inf]), torch.ones(79))))  # in 1 − (1 − 1/80)^80 of the resamples
    assert (vetoed.value, vetoed.low, vetoed.high) == (-torch.inf, -torch.inf, 1.0)


def test_a_bound_at_each_of_several_instances():
    deviation = torch.tensor([0.5, 1.0, 2.0])
    found = bound_values(bounds.subgaussian_suboptimality, deviation=deviation, beta=0.5)
    assert found.tolist() == [0.25, 1.0, 4.0]  # s²/(2β)
    assert found.tolist() == [bounds.subgaussian_suboptimality(deviation=s, beta=0.5).value for s in (0.5, 1.0, 2.0)]


def test_unknown_claims_are_refused_with_the_nearest():
    with pytest.raises(ArgumentError, match="merge-identity"):
        lab.verify("merge-idntity")


def test_ledger_resumes_replaces_and_tells_older_code(tmp_path):
    ledger = lab.Ledger(tmp_path)
    assert not ledger.has("merge-identity", full=False)
    ledger.record(lab.verify("merge-identity"))
    ledger.record(lab.verify("prompt-sampling-noise"))
    again = lab.Ledger(tmp_path)
    assert again.has("merge-identity", full=False) and not again.has("merge-identity", full=True)
    page = (tmp_path / "claims.md").read_text()
    assert page.index("### merge-identity") < page.index("### prompt-sampling-noise") < page.index("No learning happens here")
    assert (
        "**verified**" in page
        and "quick form" in page
        and (tmp_path / "figures/claims/prompt-sampling-noise.png").stat().st_size > 5_000
    )
    stored = json.loads((tmp_path / "claims.json").read_text())
    assert stored["claims"]["merge-identity"]["checks"][0]["holds"] is True
    stored["claims"]["merge-identity"]["fingerprint"] = "older"
    (tmp_path / "claims.json").write_text(json.dumps(stored))
    older = lab.Ledger(tmp_path)
    assert not older.has("merge-identity", full=False) and older.has("prompt-sampling-noise", full=False)
    assert not [f for f in tmp_path.rglob(".*") if f.is_file()]
    (tmp_path / "claims.json").write_text("{")
    with pytest.raises(OutputError, match="no ledger"):
        lab.Ledger(tmp_path)


def test_a_claim_counts_as_done_only_when_the_page_has_it(tmp_path, monkeypatch):
    """Whoever is killed at any of the writes finds the claim missing, or the page with it."""
    outcome, written = lab.verify("merge-identity"), []

    def killed(path, text):
        written.append(path)
        if len(written) == at:
            raise KeyboardInterrupt
        write_whole(path, text)

    monkeypatch.setattr("multiref_lab.ledger.write_whole", killed)
    for at in (1, 2):
        written.clear()
        folder = tmp_path / str(at)
        with pytest.raises(KeyboardInterrupt):
            lab.Ledger(folder).record(outcome)
        page = folder / "claims.md"
        has = page.exists() and "### merge-identity" in page.read_text(encoding="utf-8")
        assert has or not lab.Ledger(folder).has("merge-identity", full=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "each", [c for c in lab.claims() if c.group in ("reverse KL", "forward KL", "stability")], ids=lambda c: c.name
)
def test_claim_in_full(each: Claim):
    expected = {**NOT_VERIFIED, "kl-regularised-crossover": "refuted"}
    measurement = each.measure(Effort(full=True))
    assert each.rule(measurement) == expected.get(each.name, "verified"), [c for c in measurement.checks if not c.holds]


def test_a_verdict_depends_on_the_files_it_reaches_and_on_no_others():
    """`online-fixed-points` reaches the exact solver through its imports, and no other claim's file;
    the hash follows their bytes.
    """
    from multiref_lab.fingerprint import dependencies, fingerprint

    (claim,) = lab.find(["online-fixed-points"])
    reached = {"/".join(file.parts[-2:]) for file in dependencies(claim.measure.__module__)}
    assert {"statements/online_fixed_points.py", "exact/_solve.py", "multiref/pools.py", "toys/enumerated_rules.py"} <= reached
    assert (
        not {"statements/private_labels.py", "statements/__init__.py", "multiref_lab/ledger.py", "multiref_lab/figures.py"}
        & reached
    )
    (other,) = lab.find(["two-stage-coverage"])
    assert "statements/private_labels.py" in {"/".join(file.parts[-2:]) for file in dependencies(other.measure.__module__)}
    assert fingerprint(claim.measure.__module__) != fingerprint(other.measure.__module__)
