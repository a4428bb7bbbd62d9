"""The head: linear on standardised embeddings of length one, fitted exactly.

Its weights are the mean of two classifiers that need no steps to be guessed: multinomial
logistic regression, whose loss is convex, by L-BFGS; and linear discriminant analysis with a
shrunken covariance, in closed form. The first draws boundaries, the second knows how the labels
spread; on few photos their mean has a lower log-loss than either (tests/test_head.py). What is
left to choose, the strength of regularisation and the temperatures, is chosen by log-loss on
held-out photos, reproducibly.

Two other kinds can be asked for. On the sample photos, by five folds and four seeds
(tests/test_head_kinds.py), neither is better:

| kind | accuracy (95 % interval at N=406) | log-loss |
|---|---|---|
| linear | 75.6 % (71.2 % to 79.5 %) | .757 |
| hidden: linear, and a hidden layer that learns what is left over | 75.6 % (71.2 % to 79.5 %) | .757 |
| cosine: a scale times the cosine with one direction a label | 74.9 % (70.4 % to 78.8 %) | .792 |

A hidden layer pays where labels are no single clouds, and photos are many enough to show it.

    model      Head, Scaling, probabilities
    blocks     photos in blocks, that need not fit in memory
    linear     logistic regression, the discriminant, cosine prototypes
    hidden     a hidden layer beside the linear head
    calibrate  temperatures and mixtures
    settings   what a head is to be, and what was chosen
    fitter     the linear classifiers of a kind on some rows
    choose     settings by held-out log-loss: fit, fit_blocks
    known      a head of settings that are known: refit
"""

from trainer.heads.calibration import fit_temperature
from trainer.heads.fitter import one_thread
from trainer.heads.head import Floats, Head, HiddenLayer, Ints, Linear, Scaling, Vectors, log_loss, softmax
from trainer.heads.linear import SHRINKAGE, discriminate, minimise
from trainer.heads.refit import refit
from trainer.heads.selection import ENOUGH_VALIDATION, FOLDS, STRENGTHS, fit, fit_blocks, stratified_folds
from trainer.heads.settings import MANY, HeadSettings, Selection, class_weights
from trainer.heads.streaming import Blocks

__all__ = [
    "ENOUGH_VALIDATION",
    "FOLDS",
    "MANY",
    "SHRINKAGE",
    "STRENGTHS",
    "Blocks",
    "Floats",
    "Head",
    "HeadSettings",
    "HiddenLayer",
    "Ints",
    "Linear",
    "Scaling",
    "Selection",
    "Vectors",
    "class_weights",
    "discriminate",
    "fit",
    "fit_blocks",
    "fit_temperature",
    "log_loss",
    "minimise",
    "one_thread",
    "refit",
    "softmax",
    "stratified_folds",
]
