"""Speech recognition as a predictor: `@speech/transcribe` yields the text so far while it consumes the audio.

Nothing here imports the engine, and pocketsphinx is imported by `Transcribe.setup` alone, so describing the predictor
stays cheap. `clip` gives the two sample recordings this package carries.
"""

from engine_speech._audio import clip
from engine_speech._transcribe import Transcribe

__all__ = ["Transcribe", "clip"]
