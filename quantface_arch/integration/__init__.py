"""The YAML side of BasicSR: options files, registration, and patches of BasicSR itself."""
