"""Images found by images: classes, landmarks, copies. Here are the defaults that declaration and mathematics share."""

KS = (1, 5, 10)  # depths at which precision is measured
LONG_SIDE = 224  # pixels of a landmark, as DINO has it for Oxford
SQUARE = 320  # pixels of a copy
