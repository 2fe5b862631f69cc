"""The cost of a network in bytes, multiply-accumulates and bit-operations."""
