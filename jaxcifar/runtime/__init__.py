"""The process, its devices and signals, and the training loop above them."""
