"""The decoder: one definition for every family, and the seams behind which devices and number formats differ."""
