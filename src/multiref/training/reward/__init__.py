"""Reward models from preference pairs: a causal language model's body with one number at its last token,
in the format of transformers.

`RewardTrainer(model, args=…, train_dataset=pairs, processing_class=tokenizer)`;
`open_reward_model` makes or loads the model, `calibration` says whether σ(margin) is how often the pair goes that way.
"""

from multiref.training.reward.calibration import Bin, Calibration, calibration
from multiref.training.reward.model import open_reward_model, rewards_of
from multiref.training.reward.trainer import RewardBatch, RewardData, RewardTrainer

__all__ = ["Bin", "Calibration", "RewardBatch", "RewardData", "RewardTrainer", "calibration", "open_reward_model", "rewards_of"]
