"""Files of quantized networks. Readers trust none of them."""
