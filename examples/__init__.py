"""Programs that show the organism at work."""
