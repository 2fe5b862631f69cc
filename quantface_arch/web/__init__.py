"""Serve a web page that restores photographs: ``python inference/app.py``."""
