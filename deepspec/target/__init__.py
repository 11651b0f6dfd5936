"""The target model: where it is, which one it is, and what it computes inside. How it reads: deepspec/chat.

source.py      where a target comes from; finds one that is ready            (no torch)
identity.py    which target it is: hashes of config, weights, tokenizer, template (no torch)
heads.py       config and weights held against each other by their headers (no torch)
tokens.py      tokenizer and chat template, tried before the weights are loaded (no torch)
layers.py      which layers are captured                                    (no torch)
resolve.py     makes a source ready: a folder of safetensors, tokenizer and template
load.py        the model in memory
capture.py     hidden states of chosen layers
mask_token.py  the token that stands for "not drafted yet"
"""

from deepspec.target.identity import identify
from deepspec.target.source import TargetFiles, TargetSource, find_target

__all__ = ["TargetFiles", "TargetSource", "find_target", "identify"]
