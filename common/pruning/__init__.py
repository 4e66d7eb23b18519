"""Fewer channels: which move together, what each of them counts, and which are left out for fewer operations."""
