"""Encoded images and masks -> arrays; start with `images` and `masks`."""
