"""What decoding gives: rounds, and the numbers about them with their intervals."""
