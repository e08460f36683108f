"""What a run folder holds, read and written in one place."""
