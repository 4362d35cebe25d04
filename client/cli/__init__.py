"""The command `pagewire`."""
