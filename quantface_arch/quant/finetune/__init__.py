"""Training quantized networks: whole, or block by block."""
