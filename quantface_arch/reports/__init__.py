"""Tables and plots of quantized networks."""
