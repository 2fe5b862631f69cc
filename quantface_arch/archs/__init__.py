"""The networks; ``build.build_arch`` builds one from its options."""
