"""Judging a model: probes, metrics, suites and gates. Knows nothing of editors."""
