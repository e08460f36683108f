"""Embeddings -> loss. A loss knows nothing of models, optimisers or processes."""
