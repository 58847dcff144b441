"""The scenarios of reliability.md: one file each, named after it."""
