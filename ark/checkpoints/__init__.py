"""Training checkpoints: written whole or not at all, sealed, kept, found again."""
