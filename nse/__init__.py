"""Editing: requests and tensors in, patches out. Knows torch; no database, no scheduler, no DVC."""
