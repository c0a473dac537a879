"""Models that start from random weights and read a prepared data set directly: no tokens, no Trainer.

loop         steps, epochs, the best state by validation, checkpoints that resume exactly, stopping
sequential   what a step and a validation of a sequential model are
tiger        what a step of an encoder-decoder over semantic IDs is
losses       cross-entropy, binary cross-entropy with drawn negatives, the DRO term
"""
