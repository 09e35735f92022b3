"""Learned queue managers that others have published, as agents; their cards tell what differs from it.

A law that was made for one queue decides about C, and L gets the coupled probability of RFC 9332 (`coupling.coupled`).
"""
