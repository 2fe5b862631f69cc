"""What a network costs: bytes, multiply-accumulates, bit-operations."""
