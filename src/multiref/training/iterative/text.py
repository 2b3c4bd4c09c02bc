"""Hugging Face models behind the same interface: policies with adapters on one base, frozen references, a reward head on frozen hidden states."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multiref.errors import ArgumentError, VocabularyMismatch
from multiref.models.sampling import draw
from multiref.models.spec import Generation

__all__ = ["TextPolicy", "TextReward", "TextWorld", "frozen_references", "with_adapter"]


_REMEMBERED = 100_000


class TextWorld:
    """Prompts as texts, a tokenizer, and what turns token ids back into texts. Completions are [B, n, L], padded with −1, end token included."""

    def __init__(self, prompts: Sequence[str], tokenizer: Any, *, max_new_tokens: int):
        if not prompts or max_new_tokens < 1:
            raise ArgumentError(
                f"prompts: found {len(prompts)} and max_new_tokens {max_new_tokens}, expected at least one of each"
            )
        self.prompts, self.tokenizer, self.max_new_tokens = list(prompts), tokenizer, max_new_tokens
        self.ids = [tokenizer(prompt)["input_ids"] for prompt in self.prompts]
        self.end = tokenizer.eos_token_id

    def decode(self, prompts: Tensor, completions: Tensor) -> tuple[list[str], list[str]]:
        """[B], [B, L] → prompt texts and completion texts."""
        texts = [self.tokenizer.decode([t for t in row if t >= 0], skip_special_tokens=True) for row in completions.tolist()]
        return [self.prompts[x] for x in prompts.tolist()], texts

    def rows(self, prompts: Tensor, completions: Tensor) -> tuple[Tensor, Tensor, int]:
        """[B], [B, n, L] → ids [B·n, P + L] with prompts padded on the left, attention mask, and P."""
        width = max(len(self.ids[x]) for x in prompts.tolist())
        left = torch.tensor([[-1] * (width - len(self.ids[x])) + self.ids[x] for x in prompts.tolist()])
        ids = torch.cat((left.repeat_interleave(completions.shape[1], 0), completions.flatten(0, 1)), 1)
        return ids.clamp_min(0), (ids >= 0).long(), width


def _forward(model: Any, ids: Tensor, mask: Tensor, **options: Any) -> Any:
    device = next(model.parameters()).device
    places = (mask.cumsum(-1) - 1).clamp_min(0)
    return model(input_ids=ids.to(device), attention_mask=mask.to(device), position_ids=places.to(device), **options)


def with_adapter(model: Any, options: dict[str, Any], *, seed: int = 0) -> Any:
    """The model with one LoRA adapter called `start`, which changes nothing yet; drawn from `seed`, the global random state left as it was."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options), adapter_name="start")


class TextPolicy:
    """A causal language model as a policy; with `adapter`, one LoRA adapter of a PEFT model, whose copies share its base."""

    def __init__(self, world: TextWorld, model: Any, *, adapter: str | None = None):
        self.world, self.model, self.adapter = world, model.eval(), adapter

    def _use(self) -> Any:
        if self.adapter is not None:
            self.model.set_adapter(self.adapter)
            for parameter in self.parameters():
                parameter.requires_grad_(True)
        return self.model

    def parameters(self) -> list[Tensor]:
        """All of them, or the adapter's alone."""
        if self.adapter is None:
            return list(self.model.parameters())
        return [p for name, p in self.model.named_parameters() if f".{self.adapter}." in name]

    def matrices(self) -> list[Tensor]:
        """[m, n] each, of those in training: what Muon may orthogonalise, that is neither embeddings nor the head."""
        ends = {
            id(end.weight) for end in (self.model.get_input_embeddings(), self.model.get_output_embeddings()) if end is not None
        }
        return [p for p in self.parameters() if p.ndim == 2 and id(p) not in ends]

    def copy(self) -> TextPolicy:
        """Without an adapter a whole model; with one, another adapter on the same base."""
        if self.adapter is None:
            return TextPolicy(self.world, copy.deepcopy(self.model))
        name = f"copy{len(self.model.peft_config)}"
        with torch.random.fork_rng(devices=[]):
            self.model.add_adapter(name, self.model.peft_config[self.adapter])
        other = TextPolicy(self.world, self.model, adapter=name)
        with torch.no_grad():
            for mine, theirs in zip(other.parameters(), self.parameters(), strict=True):
                mine.copy_(theirs)
                mine.requires_grad_(True)
        return other

    def logps(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [B, n, L] → [B, n]."""
        ids, mask, width = self.world.rows(prompts, completions)
        logits = _forward(self._use(), ids, mask).logits[:, width - 1 : -1].float().cpu()
        chosen = logits.log_softmax(-1).gather(-1, ids[:, width:, None]).squeeze(-1)
        return (chosen * mask[:, width:]).sum(-1).view(completions.shape[:-1])

    def sample(self, prompts: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """[B] → [B, n, L], ancestral at temperature 1."""
        world, seed = self.world, int(torch.randint(2**31, (1,), generator=generator))
        rows = draw(
            self._use(),
            [tuple(world.ids[x]) for x in prompts.tolist()],
            Generation(world.max_new_tokens),
            group=n,
            ends=(world.end,),
            pad=world.tokenizer.pad_token_id or 0,
            generator=torch.Generator().manual_seed(seed),
        )
        padded = [[*ids, *[-1] * (world.max_new_tokens - len(ids))] for ids, _ in rows]
        return torch.tensor(padded).view(len(prompts), n, -1)


def frozen_references(world: TextWorld, models: Sequence[Any], tokenizers: Sequence[Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """K frozen models of one vocabulary → ref_logps of a task.

    Raises:
        VocabularyMismatch: a tokenizer that maps another way.
    """
    for place, tokenizer in enumerate(tokenizers):
        if tokenizer.get_vocab() != world.tokenizer.get_vocab():
            raise VocabularyMismatch(
                f"reference {place}: its vocabulary is not the policy's; expected the same mapping for online scoring"
            )
    frozen = [TextPolicy(world, model) for model in models]

    @torch.no_grad()
    def ref_logps(prompts: Tensor, completions: Tensor) -> Tensor:
        return torch.stack([each.logps(prompts, completions) for each in frozen])

    return ref_logps


class TextReward(nn.Module):
    """r_φ = ⟨φ, f⟩/√d with f the mean of a frozen model's hidden states over the completion, standardised on the starting policy's completions.

    Args:
        calibration: prompts [B] and completions [B, n, L] on which the features get mean 0 and deviation 1.
    """

    def __init__(self, world: TextWorld, model: Any, calibration: tuple[Tensor, Tensor]):
        super().__init__()
        self.world, self._frozen = world, [model]  # in a list: its parameters are not ours to train
        self._seen: dict[bytes, Tensor] = {}
        self.centre, self.scale = torch.zeros(1), torch.ones(1)
        raw = self.features(*calibration).flatten(0, 1)
        self.centre, self.scale = raw.mean(0), raw.std(0).clamp_min(1e-6)
        self.phi = nn.Parameter(torch.zeros(raw.shape[-1]))

    def __deepcopy__(self, memo: dict) -> TextReward:
        other = TextReward.__new__(TextReward)
        nn.Module.__init__(other)
        other._seen = self._seen
        other.world, other._frozen, other.centre, other.scale = self.world, self._frozen, self.centre, self.scale
        other.phi = nn.Parameter(self.phi.detach().clone())
        return other

    def features(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [B, n, L] → [B, n, d]; each completion goes through the frozen model once, for labelled pairs come back in every step of a fit."""
        rows = completions.flatten(0, 1)
        asked = prompts.repeat_interleave(completions.shape[1])
        keys = [x.to_bytes(8, "little") + row.numpy().tobytes() for x, row in zip(asked.tolist(), rows)]
        if len(self._seen) > _REMEMBERED:
            self._seen.clear()
        fresh = list({key: place for place, key in enumerate(keys) if key not in self._seen}.values())
        if fresh:
            found = self._hidden(asked[fresh], rows[fresh].unsqueeze(1))
            self._seen.update({keys[place]: row for place, row in zip(fresh, found)})
        raw = torch.stack([self._seen[key] for key in keys])
        return ((raw - self.centre) / self.scale).view(*completions.shape[:-1], -1)

    @torch.no_grad()
    def _hidden(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [B, 1, L] → [B, d]: mean of the last hidden states over the completion."""
        ids, mask, width = self.world.rows(prompts, completions)
        hidden = _forward(self._frozen[0], ids, mask, output_hidden_states=True).hidden_states[-1].float().cpu()
        kept = mask[:, width:, None].float()
        return (hidden[:, width:] * kept).sum(1) / kept.sum(1).clamp_min(1)

    def jacobian(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [B, n, L] → [B, n, d]: ∂r/∂φ."""
        return self.features(prompts, completions) / len(self.phi) ** 0.5

    def forward(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [B, n, L] → [B, n]."""
        return self.jacobian(prompts, completions) @ self.phi
