"""Models by name or path, and the readers of the file formats in which others publish theirs."""
