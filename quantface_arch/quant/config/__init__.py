"""Settings of the quantization: specs of layers, recipes and bit maps."""
