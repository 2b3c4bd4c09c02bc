"""How far RLHF variants move when one example is replaced or left out: the experiment behind `multiref stability`. Ours, not a paper's.

`axes(…)` lists what is varied, `Experiment` measures it cell by cell and goes on where it stopped, `write_page` draws and tabulates.
"""

from multiref_lab.stability.experiment import Experiment, Record
from multiref_lab.stability.fit import Agreement, agreement, fit, influence
from multiref_lab.stability.grid import WORLDS, Axis, Cell, axes
from multiref_lab.stability.linear_cell import Given, LinearSettings, measure_linear
from multiref_lab.stability.page import Page, write_page
from multiref_lab.stability.real import given_by_models, kept_given, prompts_needed, read_prompts
from multiref_lab.stability.transformer_cell import TransformerSettings, measure_transformer

__all__ = [
    "WORLDS",
    "Agreement",
    "Axis",
    "Cell",
    "Experiment",
    "Given",
    "LinearSettings",
    "Page",
    "Record",
    "TransformerSettings",
    "agreement",
    "axes",
    "fit",
    "given_by_models",
    "influence",
    "kept_given",
    "measure_linear",
    "measure_transformer",
    "prompts_needed",
    "read_prompts",
    "write_page",
]
