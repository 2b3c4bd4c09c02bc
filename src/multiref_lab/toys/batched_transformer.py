"""A small causal transformer over prompts and a few tokens, S of them side by side:
parameters carry the seeds on their first axis.

Training S seeds then costs little more than one, because at this size it is the number of operations that takes the time.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from multiref.errors import ArgumentError
from multiref_lab.toys.enumerable import Size, ToyPolicy, every_completion


class BatchedTransformer(ToyPolicy):
    """π(y_t | x, y_<t) for completions of a few tokens: token 0 of the context is the prompt. Pre-norm, one or more layers."""

    def __init__(
        self,
        seeds: int,
        size: Size,
        *,
        heads: int = 2,
        layers: int = 1,
        spread: float = 1.0,
        eps: float = 1e-5,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        width, vocabulary, length, prompts = size.width, size.vocabulary, size.length, size.prompts
        if min(seeds, prompts, vocabulary, length, layers) < 1 or width % heads:
            raise ArgumentError(
                f"width: found {width} over {heads} heads, expected positive sizes and a width that the heads divide"
            )
        self.seeds, self.size, self.heads, self.eps = seeds, size, heads, eps
        self.vocabulary, self.length, self.width = vocabulary, length, width

        def draw(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(std * torch.randn(seeds, *shape, generator=generator))

        self.embedding = draw(vocabulary + prompts, width, std=1.0)
        self.position = draw(length, width, std=0.5)
        self.qkv = nn.ParameterList([draw(width, 3 * width, std=width**-0.5) for _ in range(layers)])
        self.mix = nn.ParameterList([draw(width, width, std=width**-0.5) for _ in range(layers)])
        self.up = nn.ParameterList([draw(width, 2 * width, std=width**-0.5) for _ in range(layers)])
        self.down = nn.ParameterList([draw(2 * width, width, std=(2 * width) ** -0.5) for _ in range(layers)])
        self.head = draw(width, vocabulary, std=spread * width**-0.5)

    def matrices(self) -> list[nn.Parameter]:
        """[S, m, n] each: the hidden matrices, without embeddings, positions and head."""
        return [*self.qkv, *self.mix, *self.up, *self.down]

    def hidden(self, ids: Tensor) -> Tensor:
        """[S, N, T] context ids → [S, N, T, D]: normalised, before the head."""
        offset = torch.arange(len(ids))[:, None, None] * self.embedding.shape[1]
        h = self.embedding.flatten(0, 1)[ids + offset] + self.position[:, None, : ids.shape[-1]]
        layers = zip(self.qkv, self.mix, self.up, self.down)
        return decode(h, layers, heads=self.heads, norm=lambda h: layer_norm(h, (self.width,), eps=self.eps), bend=gelu)

    def logits(self, ids: Tensor) -> Tensor:
        """[S, N, T] context ids → [S, N, T, V]: row t predicts the token after position t."""
        return self.hidden(ids) @ self.head[:, None]

    def context(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [S, B, n, T] → [S, B·n, 1 + T]."""
        start = (self.vocabulary + prompts)[None, :, None, None].expand(self.seeds, -1, completions.shape[2], 1)
        return torch.cat((start, completions), -1).flatten(1, 2)

    def logps(self, prompts: Tensor, completions: Tensor) -> Tensor:
        tokens = self.logits(self.context(prompts, completions[..., :-1])).log_softmax(-1)
        chosen = tokens.gather(-1, completions.flatten(1, 2).unsqueeze(-1)).squeeze(-1).sum(-1)
        return chosen.view(completions.shape[:-1])

    @torch.no_grad()
    def sample(self, prompts: Tensor, n: int, generator: torch.Generator) -> Tensor:
        completions = torch.zeros(self.seeds, len(prompts), n, 0, dtype=torch.long)
        for _ in range(self.length):
            law = self.logits(self.context(prompts, completions))[:, :, -1].softmax(-1)
            token = torch.multinomial(law.flatten(0, 1), 1, generator=generator).view(self.seeds, len(prompts), n, 1)
            completions = torch.cat((completions, token), -1)
        return completions

    def forward(self) -> Tensor:
        prompts = torch.arange(self.embedding.shape[1] - self.vocabulary)
        prefixes = every_completion(self.vocabulary, self.length - 1)
        rows = []
        for chunk in prompts.split(16):
            ids = prefixes.expand(self.seeds, len(chunk), *prefixes.shape)
            tokens = self.logits(self.context(chunk, ids)).double().log_softmax(-1).unflatten(1, (len(chunk), -1))
            rows.append(whole_completions(tokens, prefixes))
        return torch.cat(rows, 1)


def decode(
    h: Tensor,
    layers: Iterable[Sequence[Tensor]],
    *,
    heads: int,
    norm: Callable[[Tensor], Tensor],
    bend: Callable[[Tensor], Tensor],
) -> Tensor:
    """[S, N, T, D] → [S, N, T, D]: causal pre-norm layers of four matrices each, seeds on their first axis, and a last norm.

    Args:
        layers: queries, keys and values [S, D, 3D]; their mixture [S, D, D]; up [S, D, E] and down [S, E, D].
        bend: between up and down.
    """
    shape = seeds, rows, steps, width = h.shape
    h = h.reshape(seeds, rows * steps, width)
    unseen = torch.full((steps, steps), -torch.inf).triu(1)
    for qkv, mix, up, down in layers:
        parts = (norm(h) @ qkv).view(seeds, rows, steps, 3, heads, width // heads)
        q, k, v = parts.permute(3, 0, 1, 4, 2, 5)
        attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + unseen).softmax(-1)
        h = h + (attention @ v).transpose(2, 3).reshape(seeds, rows * steps, width) @ mix
        h = h + bend(norm(h) @ up) @ down
    return norm(h).view(shape)


def whole_completions(steps: Tensor, prefixes: Tensor) -> Tensor:
    """[*E, V^(L−1), L, V] log-probabilities after each of the prefixes [V^(L−1), L − 1] → [*E, V^L] of whole completions."""
    taken = prefixes.expand(*steps.shape[:-2], -1).unsqueeze(-1)
    before = steps[..., :-1, :].gather(-1, taken)[..., 0].sum(-1, keepdim=True)
    return (before + steps[..., -1, :]).flatten(-2)


class TransformerReward(nn.Module):
    """r(x, y) read off the last token of a `BatchedTransformer` over prompt and completion, S side by side.

    Zero at first: a reward without known features.
    """

    def __init__(self, seeds: int, size: Size, *, generator: torch.Generator) -> None:
        super().__init__()
        self.body = BatchedTransformer(seeds, replace(size, length=size.length + 1), generator=generator)
        self.body.head = nn.Parameter(torch.zeros(seeds, size.width, 1))

    def forward(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [S, B, n, L] → [S, B, n]."""
        return self.body.logits(self.body.context(prompts, completions))[:, :, -1, 0].view(completions.shape[:-1])
