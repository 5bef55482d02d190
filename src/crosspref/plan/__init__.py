"""What a run will take, before anything is spent: tokens, FLOPs, memory, disk, hours and price."""
