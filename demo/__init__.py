"""The shipped world: facts, their wordings, corrections, a regression suite, and the model that learned it."""
