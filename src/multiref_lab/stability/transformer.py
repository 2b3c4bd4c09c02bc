"""Many small transformers at once: a causal decoder whose every weight has the runs R on its first axis,
over completions that can be counted.

A prompt is a vector of content in place of a start token. Parameters of a run are one row of a matrix [R, P],
so that a distance between two runs, a step of Adam, or a gradient for each run is one line.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from multiref.errors import ArgumentError
from multiref_lab.toys import completion_index, decode, every_completion, whole_completions


@dataclass(frozen=True)
class Shape:
    """One pre-norm decoder layer of `width` with two heads and squared rectifiers; completions are `length` tokens of
    `vocabulary`; prompts are `content` numbers.

    outputs: numbers at each position: the vocabulary for a policy, 1 for a reward model.
    """

    width: int = 16
    vocabulary: int = 4
    length: int = 3
    content: int = 3
    outputs: int = 4
    heads: int = 2

    def __post_init__(self) -> None:
        if self.width < 2 or self.width % self.heads:
            raise ArgumentError(f"width: found {self.width}, expected a positive multiple of {self.heads}, the attention heads")

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """The matrices in a row of parameters."""
        w = self.width
        return {
            "content": (self.content, w), "token": (self.vocabulary, w), "position": (self.length + 1, w), "qkv": (w, 3 * w),
            "mix": (w, w),
            "up": (w, 2 * w), "down": (2 * w, w), "head": (w, self.outputs),
        }  # fmt: skip

    def completions(self) -> Tensor:
        """[V^L, L]: every completion."""
        return every_completion(self.vocabulary, self.length)

    def initial(self, count: int, generator: torch.Generator, *, spread: float = 1.0) -> Tensor:
        """[count, P]: N(0, 1/rows) for every matrix (N(0, 1) for embeddings), the head times `spread`."""
        rows = []
        for name, (size, columns) in self.parts.items():
            scale = 1.0 if name in ("token", "position") else size**-0.5
            scale *= spread if name == "head" else 1.0
            rows.append(scale * torch.randn(count, size * columns, generator=generator, dtype=torch.float64))
        return torch.cat(rows, -1)

    def outputs_at(self, parameters: Tensor, content: Tensor, tokens: Tensor) -> Tensor:
        """[R, P], [R, B, c], [R, B, T] → [R, B, 1 + T, outputs]: position t has seen the prompt and the first t tokens."""
        w = self._named(parameters)
        runs = torch.arange(len(parameters))[:, None, None]
        x = torch.cat(((content @ w["content"]).unsqueeze(2), w["token"][runs, tokens]), 2)
        x = x + w["position"][:, None, : x.shape[2]]
        layer = (w["qkv"], w["mix"], w["up"], w["down"])
        return decode(x, [layer], heads=self.heads, norm=_norm, bend=lambda h: h.relu().square()) @ w["head"].unsqueeze(1)

    def _named(self, parameters: Tensor) -> dict[str, Tensor]:
        sizes = [rows * columns for rows, columns in self.parts.values()]
        pieces = parameters.split(sizes, -1)
        return {name: piece.unflatten(-1, shape) for (name, shape), piece in zip(self.parts.items(), pieces, strict=True)}

    # ---- what policies and reward models are asked ----

    def logps(self, parameters: Tensor, content: Tensor, completions: Tensor) -> Tensor:
        """[R, P], [R, B, c], [R, B, L] → [R, B]: log π of whole completions."""
        steps = self.outputs_at(parameters, content, completions[..., :-1]).log_softmax(-1)
        return steps.gather(-1, completions.unsqueeze(-1))[..., 0].sum(-1)

    def rewards(self, parameters: Tensor, content: Tensor, completions: Tensor) -> Tensor:
        """[R, P], [R, B, c], [R, B, L] → [R, B]: the first output, summed over the completion's tokens."""
        return self.outputs_at(parameters, content, completions)[:, :, 1:, 0].sum(-1)

    def all_logps(self, parameters: Tensor, content: Tensor) -> Tensor:
        """[R, P], [R, F, c] → [R, F, V^L]: log π of every completion, from the V^(L−1) prefixes."""
        prefixes = self.completions()[:: self.vocabulary, :-1]
        return whole_completions(self._each(parameters, content, prefixes).log_softmax(-1), prefixes)

    def all_rewards(self, parameters: Tensor, content: Tensor) -> Tensor:
        """[R, P], [R, F, c] → [R, F, V^L]."""
        return self._each(parameters, content, self.completions())[..., 1:, 0].sum(-1)

    def _each(self, parameters: Tensor, content: Tensor, tokens: Tensor) -> Tensor:
        """Outputs at every prompt after each of the given token rows: [R, F, rows, 1 + T, outputs]."""
        runs, prompts = content.shape[:2]
        many = content.repeat_interleave(len(tokens), 1)
        rows = tokens.repeat(prompts, 1).expand(runs, -1, -1)
        return torch.unflatten(self.outputs_at(parameters, many, rows), 1, (prompts, len(tokens)))

    def sample(self, parameters: Tensor, content: Tensor, uniforms: Tensor) -> Tensor:
        """[R, P], [R, B, c], [R, B, L] → [R, B, L]: completions by inverting the distribution of each token."""
        tokens = torch.zeros(*content.shape[:2], 0, dtype=torch.long)
        for t in range(self.length):
            law = self.outputs_at(parameters, content, tokens)[:, :, -1].softmax(-1).cumsum(-1)
            new = (uniforms[..., t : t + 1] > law).sum(-1, keepdim=True).clamp(max=self.vocabulary - 1)
            tokens = torch.cat((tokens, new), -1)
        return tokens

    def index(self, completions: Tensor) -> Tensor:
        """[…, L] → […]: their places among all completions."""
        return completion_index(completions, self.vocabulary)


def _norm(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
