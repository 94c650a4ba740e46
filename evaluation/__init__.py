"""How good a bundle is: the divergence of its graphs from a reference, and its accuracy on a file of questions."""
