"""The decoder: one definition for every family, its weights and their files."""
