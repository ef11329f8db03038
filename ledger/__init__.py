"""The record: who changed what in the model, when, why, on what evidence and with whose approval.

Knows SQL and DVC; no tensors, no scheduler. Start at `unit_of_work.open_ledger`.
"""
