"""Logs, experience pools and datasets: reading, checking, rebuilding what the kernel knew, and writing."""
