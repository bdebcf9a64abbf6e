"""What a run needs and takes: memory, time and disk, estimated before it starts and measured while it runs."""
