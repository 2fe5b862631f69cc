"""A page in the browser that restores photographs: ``python inference/app.py``."""
