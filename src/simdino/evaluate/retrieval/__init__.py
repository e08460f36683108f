"""Images found by images: classes, landmarks, copies."""
