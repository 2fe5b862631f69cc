"""A self-check of the installation: ``python -m quantface_arch.doctor``."""
