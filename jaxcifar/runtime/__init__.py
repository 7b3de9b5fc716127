"""The process: memory, signals, devices, compiled programs."""
