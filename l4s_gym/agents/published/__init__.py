"""Learned queue managers that others have published, as agents: what is as published, and what differs, is in their cards.

A law that was made for one queue decides about C, and L gets the coupled probability of RFC 9332 (`common.coupled`).
"""
