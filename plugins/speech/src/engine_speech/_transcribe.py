"""The predictor: a pocketsphinx decoder that is fed block by block and asked for its hypothesis after each.

A plain class with `setup`, `predict` and `teardown`; a decoder hears one utterance at a time, which is also the
default concurrency of a class. It deliberately does not listen to a microphone and does not split long recordings.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Final, Protocol

from engine_speech._audio import RATE, blocks

COMMANDS: Final = Path(__file__).parent / "commands.gram"


class _Hypothesis(Protocol):
    hypstr: str


class _Decoder(Protocol):
    """What is used of `pocketsphinx.Decoder`, which comes without types."""

    def add_jsgf_string(self, name: str, jsgf_string: str) -> None: ...
    def activate_search(self, search_name: str) -> None: ...
    def start_utt(self) -> None: ...
    def process_raw(self, data: bytes) -> object: ...
    def end_utt(self) -> None: ...
    def hyp(self) -> _Hypothesis | None: ...
    def reinit_feat(self) -> None: ...


class Transcribe:
    """Turn speech into text, yielding each revised hypothesis as the audio is consumed.

    Attributes:
        grammar: the JSGF grammar that says which sentences can be heard.
    """

    __predictor__: ClassVar[dict[str, str]] = {
        "tag": "@speech/transcribe",
        "description": "Spoken English commands to text; every partial is the whole text so far.",
    }

    def __init__(self, grammar: Path = COMMANDS) -> None:
        """Keep the choice of grammar; nothing is loaded before `setup`.

        Args:
            grammar: a UTF-8 file in JSGF, all of whose words are in the model's dictionary. The default knows the
                sentences of a small house.
        """
        self.grammar = grammar
        self._decoder: _Decoder | None = None

    def setup(self) -> None:
        """Load the acoustic model, its dictionary and the grammar.

        Raises:
            ImportError: pocketsphinx is not installed.
            OSError: the grammar cannot be read.
            ValueError: the grammar is not JSGF, or has a word the dictionary lacks.
        """
        text = self.grammar.read_text(encoding="utf-8")
        # Imported by name: it has no type information, and whoever only lists predictors must not pay for it.
        # Its own log goes straight to file descriptor 2, where each mumbled sentence would leave a line.
        decoder: _Decoder = import_module("pocketsphinx").Decoder(lm=None, samprate=RATE, loglevel="FATAL")
        try:
            decoder.add_jsgf_string("grammar", text)
        except ValueError as error:
            raise ValueError(
                f"{self.grammar} is no grammar for this model: check its JSGF syntax, and that the US English "
                "dictionary has every word, in lower case"
            ) from error
        decoder.activate_search("grammar")
        self._decoder = decoder

    def predict(self, audio: bytes | str) -> Iterator[str]:
        """Recognise one utterance.

        Partials are snapshots: each is the whole text so far and may take back a word of the one before. What is
        yielded last is the text of the whole audio, `""` where no sentence of the grammar was heard, as in silence.

        Args:
            audio: the bytes of a WAV file, or the path of one: mono, 16-bit PCM, 16 kHz.

        Yields:
            The text so far, whenever it changed: lower-case words with one space between them.

        Raises:
            OSError: the file cannot be opened.
            RuntimeError: `setup` was not called, or the previous utterance is neither exhausted nor closed.
            ValueError: this is not WAV, or not in the format the model needs.
        """
        decoder = self._begin()
        latest = ""
        try:
            for block in blocks(audio):
                decoder.process_raw(block)
                text = _text(decoder)
                if text and text != latest:
                    latest = text
                    yield text
        finally:
            final = _end(decoder)
        if final != latest or not final:
            yield final

    def teardown(self) -> None:
        """Free the decoder and its model; `setup` loads them again."""
        self._decoder = None

    def _begin(self) -> _Decoder:
        """Start an utterance."""
        decoder = self._decoder
        if decoder is None:
            raise RuntimeError("nothing is loaded: call setup() before predict()")
        try:
            decoder.start_utt()
        except RuntimeError as error:
            raise RuntimeError("a decoder hears one utterance at a time: exhaust or close the previous one") from error
        return decoder


def _end(decoder: _Decoder) -> str:
    """End the utterance, heard out or not, and give its final text."""
    decoder.end_utt()
    text = _text(decoder)
    # The mean of the features and the estimate of the noise adapt as audio is heard, and would carry over into the
    # next utterance: its hypotheses would depend on history. Starting both anew takes a tenth of a millisecond.
    decoder.reinit_feat()
    return text


def _text(decoder: _Decoder) -> str:
    """The hypothesis of this moment, `""` while there is none."""
    hypothesis = decoder.hyp()
    return hypothesis.hypstr if hypothesis else ""
