"""The upper objectives, by name."""

from multiref.bilevel import Debiased, Likelihood, StopGradient, Upper, WinRate

UPPERS: dict[str, Upper] = {
    "likelihood": Likelihood(),
    "stop_gradient": StopGradient(),
    "debiased": Debiased(),
    "debiased_mixed": Debiased(mixed=True),
    "win_rate": WinRate(),
}
