"""Seeds as a pure function of what they are for."""

from __future__ import annotations

import hashlib

_MASK = 2**64 - 1


def seed_of(*parts: object) -> int:
    """A 63-bit seed from anything printable; the same on every machine and Python version."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_at(base: int, position: int) -> int:
    """The seed of `position` in a stream whose seed is `base`: splitmix64, a bijection of 64 bits
    that costs a tenth of a hash (Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195)."""
    z = (base + (position + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 1
