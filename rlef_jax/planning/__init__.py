"""What a run will need, read from the programs that it would compile: memory, arithmetic, communication, time."""
