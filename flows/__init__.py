"""Orchestration: corrections in, changesets decided and applied. The only place that knows both nse and ledger."""
