"""Rows, their Arrow schemas, readers of people's files, and the files that are shipped; no torch."""
