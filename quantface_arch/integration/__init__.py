"""The connection to BasicSR: options files, registration, and patches of BasicSR itself."""
