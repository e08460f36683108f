"""Classes: neighbours, linear heads, logistic regression, fine-tuning."""

TEMPERATURE = 0.07  # of the votes of neighbours, DINO's
