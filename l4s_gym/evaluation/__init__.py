"""Closed-loop evaluation of everything that decides: native disciplines, rules and trained agents."""
