"""Linears: one module per kind, each made from a weight as the files have it."""
