"""Help with files, images, downloads and commands, without knowing networks or quantization."""
