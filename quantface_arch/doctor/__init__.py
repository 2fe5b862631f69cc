"""Check an installation: ``python -m quantface_arch.doctor``."""
