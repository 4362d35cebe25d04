"""Constrained rows: matchers of grammars, and their masks."""
