"""Objects followed through videos."""
