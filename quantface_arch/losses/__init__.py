"""Losses; ``registered`` adds them to BasicSR's LOSS_REGISTRY."""
