"""Tests of capture: exact against independent references, faithful, and without a trace."""
