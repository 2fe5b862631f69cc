"""Connect to BasicSR: read options files, register networks, and patch BasicSR itself."""
