"""Slots: what the stream of plans makes of each slot's state, and whether a plan may be applied."""
