"""Training: the losses and the step of the paper, and the loop around them."""
