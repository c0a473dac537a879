"""Generative retrievers as item models: semantic IDs are decoded, items are scored.

tiger    encoder-decoders over semantic IDs: the states of answers, the exact probability of every item
compact  one position per item (the sum of its tokens), level heads, softmax over the children of a prefix:
         engines (the one door for models of all kinds), options, tree (nodes and sums over them), network, softmax (loss), scoring (item model), decoding (trunk of `search`)
"""
