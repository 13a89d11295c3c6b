"""How many tokens is a text, before a model has said so? A guess from its bytes, with no tokenizer."""

import math

# English prose comes to about four bytes a token with the common tokenizers; a JSON body is a little denser.
BYTES_PER_TOKEN = 4
# Reserved for the answer when the caller names no maximum. Never the model's own: one request would eat a day's limit.
DEFAULT_OUTPUT_TOKENS = 512


def tokens(size: int) -> int:
    """The estimate for `size` bytes of text; at least 1."""
    return max(1, math.ceil(size / BYTES_PER_TOKEN))
