"""Classes: neighbours, linear heads, logistic regression, fine-tuning."""
