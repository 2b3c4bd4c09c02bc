"""Does a second reference help me? What stored scores say about K references on preference pairs, and a verdict in words.

`inspect(pairs, scores)` → `Inspection`. Held-out pairs decide, clustered by prompt;
broken references are named, not weighted."""

from multiref.evaluation.inspection.inspection import Inspection, inspect
from multiref.evaluation.inspection.page import write as write_page
from multiref.evaluation.inspection.tables import coverage_lines, tables
from multiref.evaluation.inspection.verdict import Verdict

__all__ = ["Inspection", "Verdict", "coverage_lines", "inspect", "tables", "write_page"]
