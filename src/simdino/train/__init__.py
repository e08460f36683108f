"""Loss -> step -> checkpoint."""
