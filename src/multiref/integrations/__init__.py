"""Integrations: several references for people who stay with another trainer. `integrations.trl` fills the columns that TRL's
DPO reads.

What they share is scores as data: the other trainer sees numbers, and none of its insides is touched."""
