"""Learning: examples, likelihood, LoRA, Fisher information, EWC++ and the training steps, as mathematics on tensors.

No clock and no global random state; only :mod:`sona.learn.lora` touches files (adapter folders).
"""
