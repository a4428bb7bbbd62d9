"""Labelling: which photo to ask for next, the journal of the answers, and the session behind the page.

Modules: `types` (what the session exchanges with the page), `candidates` (photos with their embeddings, from
a folder, a manifest or a scores dataset), `ranking` (order of the candidates, on arrays alone), `classifier`
(the head that is refitted on the answers, beside the model that exists), `journal` (answers as JSON lines,
each synced to disk), `output` (labels.csv, the dataset manifest for hubhead train), `session` (the state
behind the page).
"""
