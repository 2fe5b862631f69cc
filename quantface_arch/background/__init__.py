"""Enlarge the background around the faces with Real-ESRGAN's network, tile by tile."""
