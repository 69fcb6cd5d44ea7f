"""Fakes, tiny real models and conformance kits for tests."""
