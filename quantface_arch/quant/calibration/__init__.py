"""Statistics of the inputs of a network's layers, and the choices that are made from them."""
