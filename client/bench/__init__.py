"""What `pagewire bench` measures with: workloads, a lean load client over gRPC, statistics, and what they say together.

It uses the service as any client does; what it knows of the service's inside comes from AdminService. The command's
flags and its printing are in `pagewire.client.cli`.
"""
