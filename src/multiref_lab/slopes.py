"""Moved to `multiref_lab.stats`; this file goes when the last claim has followed."""

from multiref_lab.stats import bootstrap_mean, fit_slope, log_spaced, measured_curve

__all__ = ["bootstrap_mean", "fit_slope", "log_spaced", "measured_curve"]
