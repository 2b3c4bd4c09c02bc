"""What `transformers.Trainer` pickles beside the weights: states of optimizer, schedule and random numbers, and no program."""

from pathlib import Path
from zipfile import BadZipFile

from torch.serialization import get_unsafe_globals_in_checkpoint

from multiref.errors import OutputError

_READ = ("optimizer.*", "scheduler.pt", "scaler.pt", "rng_state*.pth", "pytorch_model*.bin", "adapter_model*.bin")
# numpy's state of random numbers, beside the tensors and plain values that `weights_only` takes
_ALLOWED = {
    "_codecs.encode", "numpy.ndarray", "numpy.dtype", "numpy.dtypes.UInt32DType", "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray._reconstruct",
}  # fmt: skip


def check_pickled(checkpoint: Path) -> None:
    """OutputError for a file that Trainer would unpickle and that names anything else, before any of it is read: sums find
    damage, not malice."""
    for file in sorted(file for pattern in _READ for file in checkpoint.glob(pattern)):
        try:
            names = set(get_unsafe_globals_in_checkpoint(str(file))) - _ALLOWED
        except (OSError, ValueError, RuntimeError, BadZipFile, EOFError) as error:
            raise OutputError(f"{file} is no state that a run writes ({error}); go on from another checkpoint.") from error
        if names:
            raise OutputError(
                f"{file} would run code when it is read ({', '.join(sorted(names)[:3])}); it is not read. Remove it."
            )
