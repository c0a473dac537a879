"""Models that read a history item by item and score all items as the next one: SASRec, GRU4Rec, Caser, HSTU.

options   what decides a model's shape          trunks    a state for every position of a history
text      what item texts say of items          evidence  what a history alone says of the next item: copies and similar texts
model     items, trunk, evidence, logits        scoring   a saved model as infer/models/contract.py asks for
softmax   cross-entropy over all items          windows   rows of a data set as padded batches
repeats   how often an item of the history comes again, said by valid rows
"""
