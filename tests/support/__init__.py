"""What several test files stand on."""
