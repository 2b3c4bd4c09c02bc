"""Every error is a `MultirefError`; its message says what was found, what was expected, and what to do."""

import multiref as mr

# %% MultirefError, WeightsError
try:
    mr.regularizers.check_weights([0.5, 0.6], 2)
except mr.errors.WeightsError as error:
    print(error)
