"""Helpers that know nothing of networks or quantization: files, images, downloads, commands."""
