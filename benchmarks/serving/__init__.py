"""What is measured of, and shown of, a running service."""
