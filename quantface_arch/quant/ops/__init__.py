"""Pure tensor functions that the method is built from."""
