"""A generated world in which everything is exact: word problems of two skills, small models of them, answers that can all be enumerated.

`world.make(cache)` trains (once) a base model and two specialists; `run.run(...)` aligns the base model under several rules and measures each
against the exact optimum. The lab and the recipes use the same world."""
