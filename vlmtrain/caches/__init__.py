"""What is kept so that it is not computed twice: features, activations, what a reference said."""
