"""Generative retrievers as item models: semantic IDs are decoded, items are scored.

tiger   any model with semantic-ID tokens: the exact probability of every item
"""
