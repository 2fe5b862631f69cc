"""Metrics of restored images; ``registered`` adds them to BasicSR's METRIC_REGISTRY."""
