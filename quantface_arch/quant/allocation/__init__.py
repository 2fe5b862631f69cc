"""Bit widths by layer: how sensitive the layers are, and the best widths under a budget."""
