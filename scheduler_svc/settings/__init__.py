"""What a server can be told, where it is told, and what the machine decides where it is told nothing."""
