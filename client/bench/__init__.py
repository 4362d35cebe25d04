"""Benchmarks: all of `pagewire bench`, from its flags to the tables that it prints.

A measurement is a module: `throughput`, `serve`, `engine`, `control_plane`. They share the flags and the service that
those describe (`flags`), and how a result is told (`report`, `plot`). Beneath them: what is asked for (`workload`), how
it comes (`load`), over which channel (`session`), whole runs and cases (`runs`, `cases`), their figures (`summary`),
where it ran (`environment`).

A benchmark uses the service as any client does; what it knows of the service's inside comes from AdminService.
"""
