"""Streams: each request's events until the last one, and the link to the engine."""
