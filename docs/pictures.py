"""The pictures of the idea, computed by the library: `python docs/pictures.py` writes docs/figures/idea-*.svg again."""

from pathlib import Path

import torch

import multiref as mr
from multiref.report.figures import GREY, INK, MARKERS, PALETTE, canvas, finish, svg

FIGURES = Path(__file__).parent / "figures"
REFERENCES = torch.tensor([[0.85, 0.10, 0.05], [0.05, 0.15, 0.80]]).double().log()
REWARD = torch.tensor([0.0, 1.0, 0.0]).double()
TRIANGLE = torch.tensor([[0.90, 0.07, 0.03], [0.04, 0.26, 0.70]]).double().log()
TRIANGLE_REWARD = torch.tensor([0.0, 1.0, 0.5]).double()
FAMILY = {"forward KL": 0.0, "α = ½": 0.5, "reverse KL": 1.0, "α = 2": 2.0}
CORNERS = torch.tensor([[0.0, 0.0], [0.5, 0.75**0.5], [1.0, 0.0]]).double()  # completions: left, top, right


def optimum(alpha, beta, ref_logps=REFERENCES, reward=REWARD, weights=(0.5, 0.5)):
    named = {0.0: mr.ForwardKL, 1.0: mr.ReverseKL}
    rule = named[alpha](weights) if alpha in named else mr.AlphaDivergence(weights, alpha)
    return mr.exact.solve(reward, ref_logps, rule, beta=beta).log_policy


def triangle():
    """Every point is a distribution over three completions; each curve is the optimum from β = ∞ (the pool) to β = 0."""
    figure, axes = canvas(6.0, 5.2)
    axes.plot(*CORNERS[[0, 1, 2, 0]].T, color=GREY, linewidth=1)
    names = (f"{name}: reward {value:g}" for name, value in zip("ABC", TRIANGLE_REWARD.tolist(), strict=True))
    for corner, text, place in zip(CORNERS, names, ((0, -16), (0, 8), (0, -16)), strict=True):
        axes.annotate(text, corner, xytext=place, textcoords="offset points", ha="center", color=GREY)
    for number, (name, alpha) in enumerate(FAMILY.items()):
        betas = torch.logspace(3, -2, 300).tolist()
        path = torch.stack([optimum(alpha, beta, TRIANGLE, TRIANGLE_REWARD) for beta in betas]).exp() @ CORNERS
        axes.plot(*path.T, color=PALETTE[number], linewidth=1.6, label=name)
        axes.plot(*path[:1].T, color=PALETTE[number], marker=MARKERS[number], markersize=7)
    points = TRIANGLE.exp() @ CORNERS
    axes.plot(*points.T, "o", color=INK, markersize=8, label="the two references")
    axes.set_axis_off()
    axes.set_aspect("equal")
    return finish(figure, axes, "", "", "As β falls, the optimum goes from the references' pool to the best completion")


def lengths():
    """Two models over texts of the tokens a, b and an end: how long are texts under each way of pooling them?"""
    longest, tokens = 14, torch.tensor([[0.72, 0.18, 0.10], [0.18, 0.72, 0.10]]).double().log()
    mean = [0.5, 0.5]
    per_token = mr.pools.power_pool(tokens, mean)
    per_token = per_token - per_token.logsumexp(0)

    def law(logps):
        """[…, 3] → [longest]: of the texts of n letters and an end, the sum of their probabilities."""
        masses = [logps[..., 2]]
        for _ in range(longest - 1):
            masses.append(masses[-1] + logps[..., :2].logsumexp(-1))
        return torch.stack(masses, -1)

    texts = [tokens[:, 2:]]  # [K, number of texts of n letters], every text written out
    for _ in range(longest - 1):
        texts.append((texts[-1][:, :, None] + tokens[:, None, :2]).flatten(1))
    pooled = torch.stack([mr.pools.power_pool(one, mean).logsumexp(0) for one in texts])
    figure, axes = canvas(6.4, 4.2)
    n = range(longest)
    axes.plot(n, law(tokens[0]).exp(), "o", color=INK, markersize=4, label="either reference")
    axes.plot(n, (pooled - pooled.logsumexp(0)).exp(), color=PALETTE[0], label="whole texts pooled (exact)")
    axes.plot(n, law(per_token).exp(), color=PALETTE[1], linestyle="--", label="pooled at every token")
    return finish(
        figure, axes, "letters before the end", "probability", "Disagreement is paid per token: the pool ends texts early"
    )


def second_reference():
    """The objective counts both references: reward against its penalty, for three rules and every β."""
    figure, axes = canvas(6.4, 4.2)
    sets = {"both, ½ each": (0.5, 0.5), "the first alone": (1.0, 0.0), "the second alone": (0.0, 1.0)}
    for number, (name, weights) in enumerate(sets.items()):
        path = torch.stack([optimum(1.0, beta, weights=weights) for beta in torch.logspace(2, -1, 60).tolist()])
        penalty = sum(0.5 * mr.divergences.kl(path, one.expand_as(path)) for one in REFERENCES)
        line, style = (PALETTE[number], "-" if number == 0 else "--")
        axes.plot(penalty, path.exp() @ REWARD, style, color=line, label=f"trained against {name}")
    return finish(
        figure, axes, "½ KL(π‖first) + ½ KL(π‖second), nats", "expected reward",
        "No policy lies above the exact rule's curve; one reference alone stays below it",
    )  # fmt: skip


def main():
    for name, make in {"triangle": triangle, "lengths": lengths, "second-reference": second_reference}.items():
        (FIGURES / f"idea-{name}.svg").write_bytes(svg(make()))


if __name__ == "__main__":
    main()
