"""What is fast and what is good, measured: each module prints a table and writes JSON."""
