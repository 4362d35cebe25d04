"""Requests: validation, and prompts as token ids."""
