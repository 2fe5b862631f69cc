"""Functions of tensors that the method is made of."""
