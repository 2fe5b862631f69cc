"""Bit allocation: measure each layer's sensitivity, then choose the bit widths under a budget."""
