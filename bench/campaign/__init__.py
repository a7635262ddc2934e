"""Eleven checks that show whether everything works on a GPU, and how fast.

    python -m bench.campaign --part all --out DIR

`parts/` has what is checked, `plan.py` in what time, `record.py` what a part leaves behind,
`bounded.py` the clock over its process, `table.py` the table of docs/benchmarks.md.
"""
