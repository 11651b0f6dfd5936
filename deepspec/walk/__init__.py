"""The rounds that decoding would take over held-out answers, from one teacher-forced pass.

chances.py    the chance of a token under temperature, top-k, top-p and min-p
agreement.py  what the target keeps of what a draft says in each slot
answers.py    the answers in a sample, and how much of each is the target's own
walker.py     from batches to the accepted length of a draft
"""
