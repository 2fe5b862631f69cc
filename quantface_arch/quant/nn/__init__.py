"""Quantized layers, and the conversion of a network to them."""
