"""What is wanted of a network: specs of layers, recipes, bit maps."""
