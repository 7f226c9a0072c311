"""Several ranks: DDP by phase, FSDP2, and the little that a step asks of other ranks."""
