"""Attacks that got in once, or were not tried elsewhere: each as a test that would notice."""
