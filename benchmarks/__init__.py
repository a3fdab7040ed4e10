"""Speed and memory beside peers. Not part of the package or of its tests; run from the repository's root."""
