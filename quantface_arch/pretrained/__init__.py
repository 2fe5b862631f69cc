"""Models by name or path, and readers of the file formats in which others publish models."""
