"""Quantized networks in files, none of which is trusted."""
