"""The laboratory: what the original claims, measured, and what a learned rule is made of."""
