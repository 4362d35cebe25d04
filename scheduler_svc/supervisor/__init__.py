"""The supervisor process: starts the others, watches them, starts them again, and ends them."""
