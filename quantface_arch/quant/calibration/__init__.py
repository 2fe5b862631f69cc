"""Statistics of a network's inputs, and the choices that are made from them."""
