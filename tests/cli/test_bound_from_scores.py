"""`multiref bound`: what has no constants says so; and estimates from a store of real small models against an independent
computation."""

import json
import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from multiref import bounds
from multiref.cli import app
from multiref.references.store import Store
from multiref.references.store.shards import Rows


def run(*arguments):
    return CliRunner().invoke(app, ["bound", *arguments])


@pytest.mark.parametrize("name, theorem", [("reverse-kl-5-3", "5.3"), ("forward-kl-6-3", "6.3")])
def test_theorems_without_constants_say_so_and_give_no_number(name, theorem):
    assert name in run().output and f"Theorem {theorem}" in run().output
    refused = run(name, "--samples", "1e5")
    assert refused.exit_code == 2 and "constants are not available" in refused.stderr and refused.stderr.count("\n") <= 2
    one = bounds.UNAVAILABLE[name]
    assert one.instead in bounds.statements() and one.instead in refused.stderr
    assert (
        f"Theorem {theorem}" in bounds.statements()[one.instead].citation
    )  # the derived bound names the theorem whose rate it has


def own_logp(model, tokenizer, prompt, completion):
    """log π of the completion and its end token, one text at a time, no library of ours."""
    context = tokenizer(prompt)["input_ids"]
    ids = [*tokenizer(prompt + completion)["input_ids"], tokenizer.eos_token_id]
    assert ids[: len(context)] == context
    with torch.inference_mode():
        logps = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()
    return sum(logps[t - 1, ids[t]] for t in range(len(context), len(ids)))


@pytest.mark.shared
def test_a_store_of_real_models_gives_the_numbers_that_numpy_gives(shared, tmp_path):
    """stories260K and its Shakespeare variant on about 20 short completions of two kinds.
    NumPy on log-probabilities taken from transformers directly:

    F = mean_i exp(Σ_k w_k ℓ_ki − log Σ_k w_k e^{ℓ_ki}); −log F, its error sd/(√N mean), and max_i of ratio/F as coverage.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from multiref.references import References

    lines = (shared / "data" / "tinystories" / "stories.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    words = [json.loads(line)["text"].split() for line in lines]
    texts = list(dict.fromkeys((" ".join(own[:6]), " " + " ".join(part)) for own in words for part in (own[6:8], own[8:9])))
    folders = {
        name: str(shared / "models" / folder)
        for name, folder in (("stories", "stories260K"), ("drama", "stories260K-shakespeare"))
    }
    References(folders).score(texts, store=tmp_path)
    own = []
    for folder in folders.values():
        model, tokenizer = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
            AutoTokenizer.from_pretrained(folder),
        )
        own.append([own_logp(model, tokenizer, *text) for text in texts])
    logps, weights = np.array(own), np.array([0.3, 0.7])
    highest = logps.max(0)
    ratio = np.exp(weights @ logps - (np.log(weights @ np.exp(logps - highest)) + highest))
    share = ratio.mean()
    expected = {
        "disagreement": -np.log(share),
        "error": ratio.std(ddof=1) / share / np.sqrt(len(texts)),
        "coverage": (ratio / share).max(),
    }
    assert expected["disagreement"] > 0.1  # the two models differ: the test is not idle

    shown = run("--from-scores", str(tmp_path), "--weights", "stories=0.3,drama=0.7")
    assert shown.exit_code == 0 and f"{len(texts)} whole completions" in shown.output
    found = {line.split("  ")[1].strip() if line.startswith("  ") else "": line for line in shown.output.splitlines()}
    disagreement, error = (
        float(x) for x in found["disagreement −log F"].replace("nats a completion", "").split("F")[1].split("±")
    )
    assert disagreement == pytest.approx(expected["disagreement"], rel=2e-3) and error == pytest.approx(
        expected["error"], rel=0.06
    )
    assert float(found["coverage at least"].split("least")[1]) == pytest.approx(expected["coverage"], rel=2e-3)

    turned = run("--from-scores", str(tmp_path), "--weights", "drama=0.7,stories=0.3")
    assert turned.output == shown.output
    refused = run("--from-scores", str(tmp_path), "--weights", "drama=0.7,story=0.3")
    assert refused.exit_code == 2 and "drama=0.5,stories=0.5" in refused.stderr
    quantities = ("--samples", "1e6", "--beta", "1", "--reward-max", "1", "--class-size", "100", "--delta", "0.05")
    bound = run("reverse-kl-from-references", "--from-scores", str(tmp_path), "--weights", "stories=0.3,drama=0.7", *quantities)
    # 8 γ (e^{γR}/F) e^{2R} log(|R|/δ) / n at γ = R = 1
    by_hand = 8 * np.exp(3 + expected["disagreement"]) * np.log(100 / 0.05) / 1e6
    value = float(
        next(line for line in bound.output.splitlines() if line.strip().startswith("value")).split()[1].replace(",", "")
    )
    assert value == pytest.approx(by_hand, rel=5e-3)


def test_completions_that_no_reference_gives_mass_are_left_out_and_counted(tmp_path):
    """Two references that agree on two completions and both forbid the third: −log F is that of the two. Where all the weight
    is on one reference, what that one forbids is left out too."""
    logps = torch.tensor([[-1.0, -2.0, -math.inf, -math.inf], [-1.5, -2.0, -math.inf, -3.0]], dtype=torch.float64)
    store = Store(tmp_path)
    keys = np.frombuffer(bytes(range(64)), "V16")
    for name, row in zip(("a", "b"), logps):
        address = store.register({"kind": name}, name=name, location=name)
        store.append(address, Rows(keys, row.numpy(), np.full(4, 5, np.int32), np.zeros(4, bool)))
    for weights, kept, said in (("a=0.5,b=0.5", [0, 1, 3], "mass: 1\n"), ("a=1,b=0", [0, 1], "mass: 2\n")):
        done = run("--from-scores", str(tmp_path), "--weights", weights)
        expected = bounds.coverage_from_scores(logps[:, kept], [float(part[2:]) for part in weights.split(",")])
        assert done.exit_code == 0 and str(expected) in done.output and said in done.output, done.output
    found = json.loads(run("--from-scores", str(tmp_path), "--json").stdout)  # what is printed, for programs too
    assert found["estimate"]["disagreement"] == pytest.approx(bounds.coverage_from_scores(logps[:, [0, 1, 3]]).disagreement)
