"""Views -> tokens -> embeddings."""
