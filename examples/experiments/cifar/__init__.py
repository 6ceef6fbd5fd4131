"""Training on natural images in many ways, at many prices, and attacking what came out."""
