"""Measurements of attncheck; `python -m benchmarks` runs them all, results/ keeps them."""
