"""Labelling of photos: which photo to ask for next, the journal of the answers, and the session behind the page.

candidates  photos with their embeddings, from a folder, a manifest or a scores dataset
ranking     order of the candidates by strategy, on arrays alone
journal     answers as JSON lines, synced to disk one by one
output      labels.csv, the dataset manifest that hubhead train takes
model       the head that is refitted on the answers
session     the state behind the page
"""
