"""Pictures of what happened: sheets of views and neighbours, and one page that reports a run."""
