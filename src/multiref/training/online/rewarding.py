"""What a step's completions earn, and what is odd about them: empty, all cut, not as many as asked."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from multiref.errors import ArgumentError, MultirefWarning
from multiref.references.rollouts import Rollout
from multiref.training.online.rewards import Reward, total_reward

__all__ = ["rewarded", "warn_of_odd_completions"]


def rewarded(
    rewards: Sequence[Reward], rows: Sequence[Mapping[str, Any]], rollouts: Sequence[Rollout], group: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """([N] weighted sum, {name: [N]}) of `group` completions of each row. ArgumentError where there are not as many, or one has no token."""
    completions = [completion for rollout in rollouts for completion in rollout.completions]
    empty = any(not ids for rollout in rollouts for ids in rollout.completion_ids)
    if len(completions) != len(rows) * group or empty:
        raise ArgumentError(
            f"The sampler gave {len(completions)} completions for {len(rows)} prompts{', some of no token' if empty else ''}; expected {group} each "
            "of at least one token."
        )
    prompts = [rollout.prompt for rollout in rollouts for _ in rollout.completions]
    names = {name for row in rows for name in row} - {"prompt", "weights"}
    columns = {name: [row.get(name) for row in rows for _ in range(group)] for name in sorted(names)}
    return total_reward(rewards, prompts, completions, columns)


def warn_of_odd_completions(rollouts: Sequence[Rollout], *, ends: bool, first: bool, limit: int) -> None:
    """A warning where every completion is empty text, or, at the first step of a policy that can end, none ended."""
    completions = [completion for rollout in rollouts for completion in rollout.completions]
    if not any(_words(completion) for completion in completions):
        warnings.warn(
            "Every completion of this step is empty text: the policy ends at once. Look at its prompts and chat template.",
            MultirefWarning,
            stacklevel=3,
        )
    if first and ends and not any(end for rollout in rollouts for end in rollout.ended):
        warnings.warn(
            f"Every completion of the first step was cut at max_new_tokens = {limit}: none ended. They count as they are, cut; raise max_new_tokens "
            "if answers should be whole.",
            MultirefWarning,
            stacklevel=3,
        )


def _words(completion: Any) -> str:
    return (completion if isinstance(completion, str) else " ".join(message["content"] for message in completion)).strip()
