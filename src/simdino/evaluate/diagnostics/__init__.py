"""What features are like, without labels."""
