"""Enlarging what is not a face: Real-ESRGAN's network, tile by tile."""
