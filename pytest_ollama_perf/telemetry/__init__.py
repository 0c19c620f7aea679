"""What the GPU and the machine do while a load runs: read beside the load, never part of its numbers."""
