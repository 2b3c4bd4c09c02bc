"""A sampler draws from the policy, whatever the folder's generation settings say: min_p once gave −0.575 for −1.037."""

import json
import shutil

import pytest
import torch

from multiref.models import Generation, load, sample, score_tokens


@pytest.mark.shared
def test_settings_of_a_folder_do_not_bend_a_real_model(shared, tmp_path):
    """The mean log-probability of a token is that under ancestral sampling, whatever generation_config.json says."""
    means = []
    for name, extra in {"plain": {}, "min_p": {"min_p": 0.1}, "penalty": {"repetition_penalty": 1.1}}.items():
        folder = shutil.copytree(shared / "models" / "stories260K", tmp_path / name)
        (folder / "generation_config.json").write_text(
            json.dumps({"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 2, **extra})
        )
        opened = load(folder, device="cpu")
        (rollout,) = sample(
            opened.model,
            opened.tokenizer,
            ["Once upon a time, there was a little"],
            Generation(20),
            group=60,
            generator=torch.Generator().manual_seed(0),
        )
        truth = torch.cat(score_tokens(opened.model, [rollout.encoded()]))
        means.append(float(truth.mean()))
        torch.testing.assert_close(torch.tensor([x for row in rollout.sampled_logps for x in row]), truth, rtol=0, atol=1e-4)
    assert means[0] == means[1] == means[2]
