"""The sizes and depths of retrieval, which its signature and its mathematics share."""

KS = (1, 5, 10)
LONG_SIDE = 224  # pixels of a landmark, as DINO has it for Oxford
SQUARE = 320  # pixels of a copy
