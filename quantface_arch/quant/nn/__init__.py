"""Quantized layers, and the conversion of a network's layers to them."""
