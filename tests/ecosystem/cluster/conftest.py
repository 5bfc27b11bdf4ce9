"""The loop of each test."""

pytest_plugins = ["loops"]
