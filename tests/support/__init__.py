"""What several test packages stand on."""
