"""Head: a linear classifier on standardised embeddings of length one, fitted exactly.

Its weights are the mean of two classifiers that have no learning rate or number of steps to tune:
multinomial logistic regression, whose loss is convex, by L-BFGS; and linear discriminant analysis with a
shrunk covariance, in closed form. The first models the boundaries between the labels, the second their
distribution; on few photos their mean has a lower log-loss than either (tests/bench/heads.py). The
remaining settings, regularisation strength and temperatures, are selected reproducibly by held-out
log-loss.

Another kind adds a hidden layer that is trained on the residual. On the sample photos, by five-fold
cross-validation with four seeds (tests/bench/heads.py), it is as good: accuracy 75.6 % (95 % interval at
N=406: 71.2 % to 79.5 %), log-loss .757, both of them.

A hidden layer pays off for classes that are not linearly separable, with enough photos to learn from.

    head         Head, Scaling, probabilities
    streaming    rows in blocks that need not fit in memory
    linear       loss of logistic regression, linear discriminant
    hidden       the hidden layer
    calibration  temperatures, and the mixture of two classifiers
    settings     HeadSettings and the record of a selection
    fitter       the linear classifiers of a head on some rows
    selection    regularisation strength and shrinkage by held-out log-loss
    training     fit, fit_blocks, list_held_out
    block_training  the steps of a fit on many photos
    refit        fit with known settings
"""

from trainer.heads.fitter import single_blas_thread
from trainer.heads.head import (
    Doubles,
    Floats,
    Head,
    HiddenLayer,
    Ints,
    Scaling,
    Vectors,
    log_loss,
    log_losses,
    softmax,
)
from trainer.heads.refit import refit
from trainer.heads.selection import FOLDS, stratified_folds
from trainer.heads.settings import LARGE_DATASET, HeadSettings, Selection
from trainer.heads.streaming import Blocks
from trainer.heads.training import fit, fit_blocks, list_held_out

__all__ = [
    "FOLDS",
    "LARGE_DATASET",
    "Blocks",
    "Doubles",
    "Floats",
    "Head",
    "HeadSettings",
    "HiddenLayer",
    "Ints",
    "Scaling",
    "Selection",
    "Vectors",
    "fit",
    "fit_blocks",
    "list_held_out",
    "log_loss",
    "log_losses",
    "refit",
    "single_blas_thread",
    "softmax",
    "stratified_folds",
]
