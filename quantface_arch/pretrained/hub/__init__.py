"""Restorers that are fetched from the Hugging Face hub by name, file by file, and checked."""
