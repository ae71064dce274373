"""Trainings that are killed anywhere and resumed, beside the same trainings left alone: equal down to the last bit?

`trainings.py` is the table of trainings, `moments.py` what can happen at which moment of one, `server.py` runs command
lines in processes that cost no import, `compare.py` says what differs. `python -m triune.bench.kills` is the long form.
"""
