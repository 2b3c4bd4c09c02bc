"""What a run shows to people: one self-contained HTML page (`write_page` of blocks), tables with errors, figures, a model card.

Nothing here computes a result: numbers come in, pages and pictures go out; only `paired` judges,
whether a difference is within noise."""

from multiref._files import write_whole
from multiref.report.card import ModelCard
from multiref.report.noise import Difference, Estimate, Measure, paired
from multiref.report.page import Block, Formula, Note, Picture, Prose, Section, Settings, Table, page, write_page
from multiref.report.terminal import print_table
from multiref.report.versions import versions

__all__ = [
    "Block",
    "Difference",
    "Estimate",
    "Formula",
    "Measure",
    "ModelCard",
    "Note",
    "Picture",
    "Prose",
    "Section",
    "Settings",
    "Table",
    "page",
    "paired",
    "print_table",
    "versions",
    "write_page",
    "write_whole",
]
