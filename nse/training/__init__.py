"""Training before editing: what MEND and SERAC learn on one model's facts once, as a file that their edits take."""
