"""scikit-learn's liblinear: the fit of the length-controlled win rate, as AlpacaEval 2 does it."""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from crosspref.errors import MissingLibraryError

Floats = NDArray[np.float64]

PENALTIES = np.logspace(-4, 4, 10)
FOLDS = 5
SEED = 123


def fit_by_cross_validation(design: Floats, outcomes: Floats, weights: Floats) -> tuple[Floats, float]:
    """Return the weights (features,) that minimise ||w||_1 + C sum weight * cross-entropy, and the C that was chosen.

    ``design`` is (rows, features), without a constant; ``outcomes`` (rows,) are chances in [0, 1], and ``weights``
    (rows,) say what a row counts. A row is fitted as two, won and lost, weighted by its chance of either. Of ten values
    of C the one with the smallest cross-entropy on held-out rows is taken, the mean of five folds. liblinear draws the
    order of its steps from one stream along the values of C within a fold, as scikit-learn's LogisticRegressionCV does:
    it stops early enough for the order to show in the fifth digit.

    Raises:
        MissingLibraryError: scikit-learn is not installed.
    """
    regression, folds = _library()
    row = np.tile(np.arange(len(design)), 2)
    won = np.repeat([1, 0], len(design))
    twice = design[row]
    chance = np.where(won == 1, outcomes[row], 1 - outcomes[row])
    counts = weights[row] * chance
    losses = np.zeros(len(PENALTIES))
    for kept, held_out in folds.split(twice, won, row):
        stream = np.random.RandomState(SEED)
        for number, penalty in enumerate(PENALTIES):
            model = regression(C=penalty, random_state=stream)
            model.fit(twice[kept], won[kept], sample_weight=counts[kept])
            predicted = np.clip(model.predict_proba(twice[held_out])[:, 1], 1e-15, 1 - 1e-15)
            truth = outcomes[row[held_out]]
            each = -(xlogy(truth, predicted) + xlogy(1 - truth, 1 - predicted))
            losses[number] += np.mean(weights[row[held_out]] * each)
    best = float(PENALTIES[losses.argmin()])
    final = regression(C=best, random_state=np.random.RandomState(SEED)).fit(twice, won, sample_weight=counts)
    return np.asarray(final.coef_[0], dtype=np.float64), best


def _library() -> tuple[Any, Any]:
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GroupKFold
    except ModuleNotFoundError as error:
        install = "pip install 'crosspref[eval]'"
        raise MissingLibraryError("scikit-learn", "The length-controlled win rate", install) from error
    return partial(LogisticRegression, l1_ratio=1.0, solver="liblinear", fit_intercept=False), GroupKFold(FOLDS)
