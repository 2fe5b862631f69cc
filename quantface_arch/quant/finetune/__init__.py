"""Training of quantized networks, as a whole or block by block."""
