"""gRPC: the services, what guards them, and the status that an error becomes."""
