"""Images in, views out: where images come from, how one is decoded, and what a data set looks like."""
