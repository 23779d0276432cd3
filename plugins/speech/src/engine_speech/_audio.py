"""WAV audio in, blocks of samples out, and the sample clips of this package.

Only what the acoustic model can hear passes: mono, 16-bit PCM, 16 kHz. Nothing is resampled or mixed down here; the
error says how to convert instead.
"""

import io
import wave
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Final

RATE: Final = 16_000  # Hz, what the acoustic model was trained on
_BLOCK: Final = 1_600  # frames: 0.1 s, short enough that a word appears soon after it was spoken
_ADVICE: Final = (
    "needed is mono 16-bit PCM at 16000 Hz; convert with: sox input.wav -r 16000 -c 1 -b 16 -e signed output.wav"
)
_CLIPS: Final = Path(__file__).parent / "clips"


def clip(name: str) -> Path:
    """Give the path of a sample recording, for examples and tests.

    Args:
        name: `"hello"` ("hello world") or `"lights"` ("turn off the light in the garden").

    Returns:
        The path of a mono 16-bit WAV file at 16 kHz.

    Raises:
        ValueError: there is no such clip; the message lists those there are.
    """
    clips = {path.stem: path for path in sorted(_CLIPS.glob("*.wav"))}
    if name not in clips:
        raise ValueError(f"no clip is called {name!r}; there are {', '.join(clips)}")
    return clips[name]


def blocks(audio: bytes | str) -> Iterator[bytes]:
    """Read WAV audio in blocks of 0.1 s, the last one shorter.

    Args:
        audio: the bytes of a WAV file, or the path of one.

    Yields:
        Little-endian signed 16-bit samples, at most 1600 of them.

    Raises:
        OSError: the file cannot be opened.
        TypeError: `audio` is neither bytes nor text.
        ValueError: this is not WAV, or not in the format the model needs.
    """
    with _opened(audio) as file, closing(_reader(file)) as reader:
        while block := reader.readframes(_BLOCK):
            yield block


def _opened(audio: bytes | str) -> BinaryIO:
    return io.BytesIO(audio) if isinstance(audio, bytes) else Path(audio).open("rb")


def _reader(file: BinaryIO) -> wave.Wave_read:
    try:
        reader = wave.open(file, "rb")  # noqa: SIM115 - who asked for it closes it
    except (wave.Error, EOFError) as error:  # EOFError: the file ends inside its header
        raise ValueError(f"audio is not a PCM WAV file ({str(error) or 'it ends too early'}): {_ADVICE}") from error
    found = (reader.getnchannels(), reader.getsampwidth(), reader.getframerate())
    if found != (1, 2, RATE):
        channels, width, rate = found
        raise ValueError(f"audio has {channels} channel(s) of {8 * width} bits at {rate} Hz: {_ADVICE}")
    return reader
