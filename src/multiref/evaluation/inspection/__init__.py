"""Does a second reference help me? What stored scores say about K references on preference pairs, and a verdict in words.

`inspect(pairs, scores)` → `Inspection`. A score test and held-out pairs decide, clustered by prompt;
broken references are named, not weighted."""

from multiref.evaluation.inspection.inspection import Inspection, inspect
from multiref.evaluation.inspection.page import write as write_page
from multiref.evaluation.inspection.tables import plan_table, tables, token_lines
from multiref.evaluation.inspection.verdict import Verdict

__all__ = ["Inspection", "Verdict", "inspect", "plan_table", "tables", "token_lines", "write_page"]
