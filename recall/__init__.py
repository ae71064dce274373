"""`triune recall`: what each mixer can and cannot remember, on tasks whose right answers are known exactly.

>>> from triune.recall.train import recall
>>> recall("gated_delta", task="mqar", pairs=4, length=64)["accuracy"]
"""
