"""Networks, and ``build.build_arch``, which makes one from its options."""
