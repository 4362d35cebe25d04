"""What a server says of itself to Prometheus: counts that outlive processes, their names, and the listener."""
