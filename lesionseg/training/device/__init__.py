"""What the device at hand can do: kind, memory, fastest layout, and who starts the processes."""
