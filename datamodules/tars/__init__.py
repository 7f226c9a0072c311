"""Tar shards: written, indexed, checked, fetched and read. Start with `shards` and `index`."""
