"""Features from a model's hidden states: the states of the model itself,
and a linear reward on them that preferences identify.
"""

import pytest
import torch

from multiref.errors import ArgumentError
from multiref.models import encode_many
from multiref_lab.estimators import logistic_mle
from multiref_lab.hidden_states import hidden_state_features, principal_features
from multiref_lab.preferences import sample_pairs
from multiref_lab.problems import linear_bandits


def test_principal_features_are_centred_uncorrelated_and_keep_the_largest_directions():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(6, 5, 8, generator=generator, dtype=torch.float64) * torch.tensor([5.0, 3, 1, 1, 0.1, 0.1, 0.1, 0.1])
    features = principal_features(states, 2)
    flat = features.flatten(0, 1)
    torch.testing.assert_close(features.mean(1), torch.zeros(6, 2, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.cov(flat.T), torch.eye(2, dtype=torch.float64) / 2, atol=1e-10, rtol=0)
    centred = (states - states.mean(1, keepdim=True)).flatten(0, 1)
    assert abs(torch.corrcoef(torch.stack((flat[:, 0], centred[:, 0])))[0, 1]) > 0.95
    with pytest.raises(ArgumentError, match="at most 1"):
        principal_features(torch.stack((states[:, :1, :], 2 * states[:, :1, :]), 1)[:1, :, 0], 2)


def test_features_of_seventy_rows_are_the_states_of_each_row_alone(tiny_llama, tiny_tokenizer):
    """35 prompts, two completions of different lengths each: more rows than one batch, against one row at a time, unpadded."""
    prompts = [f"the cat sat on {i}" for i in range(35)]
    completions = [(" the mat.", f" the dog and {i} logs, and Max") for i in range(35)]
    features = hidden_state_features(tiny_llama, tiny_tokenizer, prompts, completions, dimension=4)
    alone = []
    for item in encode_many(tiny_tokenizer, list(zip(prompts, completions, strict=True))):
        for i, ids in enumerate(item.completions):
            with torch.inference_mode():
                out = tiny_llama(input_ids=torch.tensor([[*item.context(i), *ids]]), output_hidden_states=True)
            alone.append(out.hidden_states[-1][0, -1].double())
    torch.testing.assert_close(features, principal_features(torch.stack(alone).view(35, 2, -1), 4), atol=1e-4, rtol=1e-4)
    for wrong in (completions[:-1], [*completions[:-1], completions[0] * 2]):
        with pytest.raises(ArgumentError, match="one list a prompt"):
            hidden_state_features(tiny_llama, tiny_tokenizer, prompts, wrong, dimension=2)


@pytest.mark.shared
def test_features_are_the_hidden_states_of_a_model_and_identify_a_reward(shared):
    from multiref.models import encode, load

    loaded = load(shared / "models" / "stories260K")
    prompts = ["Once upon a time", "Lily had a"]
    completions = [
        [" dog.", " small red ball.", " friend who ran.", " cat!", " song"],
        [" cake", " hat.", " tree to climb.", " cold day", " bug."],
    ]
    features = hidden_state_features(loaded.model, loaded.tokenizer, prompts, completions, dimension=4)
    assert features.shape == (2, 5, 4)
    encoded = encode(loaded.tokenizer, prompts[1], completions[1])
    states = []
    for i, ids in enumerate(encoded.completions):
        with torch.inference_mode():
            out = loaded.model(input_ids=torch.tensor([[*encoded.context(i), *ids]]), output_hidden_states=True)
        states.append(out.hidden_states[-1][0, -1].double())
    centred = torch.stack(states) - torch.stack(states).mean(0)
    fitted = centred @ torch.linalg.lstsq(centred, features[1]).solution  # features are linear in the states
    torch.testing.assert_close(fitted, features[1], atol=1e-6, rtol=0)
    generator = torch.Generator().manual_seed(1)
    problem = linear_bandits(30, features=features, generator=generator)
    counts = sample_pairs(problem.reward, problem.law("mixture"), 100_000, generator=generator)
    error = (logistic_mle(problem.features, counts).theta - problem.theta).norm(dim=-1)
    assert error.mean() < 0.1
    with pytest.raises(ArgumentError, match="one list a prompt"):
        hidden_state_features(loaded.model, loaded.tokenizer, prompts, [completions[0], completions[1][:2]], dimension=2)
