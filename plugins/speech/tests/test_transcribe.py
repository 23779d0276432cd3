"""`@speech/transcribe` held against its promises: growing snapshots, one clean utterance per call, clear refusals."""

import io
import subprocess
import sys
import wave
from collections.abc import Iterator
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path

import engine_speech
import pytest
from engine_speech import Transcribe, clip

SENTENCES = {"hello": "hello world", "lights": "turn off the light in the garden"}
RATE = 16_000


def wav(samples: bytes, *, rate: int = RATE, channels: int = 1, width: int = 2) -> bytes:
    """A WAV file in memory."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width)
        writer.setframerate(rate)
        writer.writeframes(samples)
    return file.getvalue()


def samples_of(name: str) -> bytes:
    with wave.open(str(clip(name)), "rb") as reader:
        return reader.readframes(reader.getnframes())


@pytest.fixture
def transcribe() -> Iterator[Transcribe]:
    predictor = Transcribe()
    predictor.setup()
    yield predictor
    predictor.teardown()


@pytest.mark.parametrize("name", SENTENCES)
def test_hypotheses_grow_and_the_last_is_the_sentence(transcribe: Transcribe, name: str) -> None:
    """Each partial has at least the words of the one before in number, and the end is exactly right."""
    partials = list(transcribe.predict(clip(name).read_bytes()))
    lengths = [len(text.split()) for text in partials]
    assert len(partials) > 1
    assert lengths == sorted(lengths)
    assert partials[-1] == SENTENCES[name]


def test_a_hypothesis_may_take_back_a_word(transcribe: Transcribe) -> None:
    """Partials are snapshots, not deltas: the switch is heard as `on` before it is heard as `off`."""
    partials = list(transcribe.predict(clip("lights").read_bytes()))
    assert partials.index("turn on") < partials.index("turn off")


def test_only_a_changed_hypothesis_is_yielded(transcribe: Transcribe) -> None:
    """No two partials in a row are the same."""
    partials = list(transcribe.predict(clip("lights").read_bytes()))
    assert all(before != after for before, after in pairwise(partials))


def test_the_first_hypothesis_comes_before_the_rest_is_read(
    transcribe: Transcribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recognition is incremental: a word is out while most of the audio is still unread."""
    read = 0
    readframes = wave.Wave_read.readframes

    def counted(reader: wave.Wave_read, frames: int) -> bytes:
        nonlocal read
        block = readframes(reader, frames)
        read += len(block)
        return block

    whole = len(samples_of("lights"))
    monkeypatch.setattr(wave.Wave_read, "readframes", counted)
    partials = transcribe.predict(clip("lights").read_bytes())
    assert next(partials) == "turn"
    assert 0 < read < whole / 2
    assert list(partials)[-1] == SENTENCES["lights"]
    assert read == whole


@pytest.mark.parametrize("name", SENTENCES)
def test_bytes_and_path_agree(transcribe: Transcribe, name: str) -> None:
    """The same partials, whichever way the audio is handed over."""
    assert list(transcribe.predict(str(clip(name)))) == list(transcribe.predict(clip(name).read_bytes()))


def test_an_answer_does_not_depend_on_what_was_heard_before(transcribe: Transcribe) -> None:
    """The adaptation to one speaker does not carry over to the next utterance."""
    alone = {name: list(transcribe.predict(str(clip(name)))) for name in SENTENCES}
    buzz = wav(bytes((60 * step) % 256 for step in range(4 * RATE)))
    for name in (*SENTENCES, *reversed(SENTENCES)):
        list(transcribe.predict(buzz))
        assert list(transcribe.predict(str(clip(name)))) == alone[name]


@pytest.mark.parametrize("pulls", [1, 3])
def test_a_prediction_closed_half_way_leaves_the_predictor_usable(transcribe: Transcribe, pulls: int) -> None:
    """The utterance is ended by `close`, and the next one starts clean."""
    untouched = list(transcribe.predict(str(clip("lights"))))
    partials = transcribe.predict(str(clip("lights")))
    for _ in range(pulls):
        next(partials)
    partials.close()  # type: ignore[attr-defined]  # a generator behind its promise of an iterator
    assert list(transcribe.predict(str(clip("lights")))) == untouched


def test_a_second_utterance_at_a_time_is_refused_and_does_not_disturb_the_first(transcribe: Transcribe) -> None:
    """One decoder, one utterance: the refusal says so and the open one goes on."""
    first = transcribe.predict(str(clip("lights")))
    heard = [next(first)]
    with pytest.raises(RuntimeError, match="one utterance at a time"):
        next(transcribe.predict(str(clip("hello"))))
    heard.extend(first)
    assert heard == list(transcribe.predict(str(clip("lights"))))


@pytest.mark.parametrize("samples", [b"", bytes(2), bytes(2 * RATE)], ids=["nothing", "one-sample", "a-second"])
def test_silence_is_one_empty_text(transcribe: Transcribe, samples: bytes) -> None:
    """`create` has a result for silence too."""
    assert list(transcribe.predict(wav(samples))) == [""]


def test_a_sentence_cut_short_ends_with_what_the_grammar_makes_of_it(transcribe: Transcribe) -> None:
    """Half a recording gives the first hypotheses of the whole, then at most one last revision."""
    samples = samples_of("lights")
    whole = list(transcribe.predict(wav(samples)))
    half = list(transcribe.predict(wav(samples[: len(samples) // 3200 // 2 * 3200])))
    assert len(half) > 2
    assert half[:-1] == whole[: len(half) - 1]


@pytest.mark.parametrize(
    ("audio", "found"),
    [
        (wav(bytes(16_000), rate=8_000), "1 channel(s) of 16 bits at 8000 Hz"),
        (wav(bytes(64_000), channels=2), "2 channel(s) of 16 bits at 16000 Hz"),
        (wav(bytes(16_000), width=1), "1 channel(s) of 8 bits at 16000 Hz"),
        (b"OggS and so on", "not a PCM WAV file"),
        (b"", "it ends too early"),
    ],
    ids=["rate", "stereo", "eight-bit", "another-format", "empty"],
)
def test_a_wrong_format_is_refused_with_advice(transcribe: Transcribe, audio: bytes, found: str) -> None:
    """The message names what was found and the command that converts it; the decoder stays usable."""
    with pytest.raises(ValueError, match=r"sox input\.wav -r 16000 -c 1 -b 16") as caught:
        next(transcribe.predict(audio))
    assert found in str(caught.value)
    assert list(transcribe.predict(str(clip("hello"))))[-1] == "hello world"


def test_a_missing_file_is_named(transcribe: Transcribe, tmp_path: Path) -> None:
    """The operating system's own error passes, and the decoder stays usable."""
    missing = tmp_path / "missing.wav"
    with pytest.raises(FileNotFoundError, match=r"missing\.wav"):
        next(transcribe.predict(str(missing)))
    assert list(transcribe.predict(str(clip("hello"))))[-1] == "hello world"


def test_predict_before_setup_and_after_teardown_says_what_to_do() -> None:
    """Nothing is loaded behind the caller's back, and `setup` works again after `teardown`."""
    predictor = Transcribe()
    with pytest.raises(RuntimeError, match=r"call setup\(\)"):
        next(predictor.predict(str(clip("hello"))))
    predictor.setup()
    predictor.teardown()
    with pytest.raises(RuntimeError, match=r"call setup\(\)"):
        next(predictor.predict(str(clip("hello"))))
    predictor.setup()
    assert list(predictor.predict(str(clip("hello"))))[-1] == "hello world"
    predictor.teardown()


def test_another_grammar_hears_other_sentences(tmp_path: Path) -> None:
    """With the one sentence it knows, the clip is heard as that sentence."""
    grammar = tmp_path / "greeting.gram"
    grammar.write_text("#JSGF V1.0;\ngrammar greeting;\npublic <greeting> = ( hello | goodbye ) world;\n")
    predictor = Transcribe(grammar)
    predictor.setup()
    assert list(predictor.predict(str(clip("hello"))))[-1] == "hello world"
    predictor.teardown()


@pytest.mark.parametrize(
    "text", ["nonsense", "#JSGF V1.0;\ngrammar g;\npublic <s> = hello xyzzyq;\n"], ids=["no-jsgf", "unknown-word"]
)
def test_an_unusable_grammar_is_named(tmp_path: Path, text: str) -> None:
    """The file and what to check are in the message."""
    grammar = tmp_path / "broken.gram"
    grammar.write_text(text)
    with pytest.raises(ValueError, match=r"broken\.gram is no grammar for this model"):
        Transcribe(grammar).setup()


def test_every_clip_is_small_and_in_the_format_the_model_needs() -> None:
    """Mono, 16 bits, 16 kHz, under 200 kB."""
    for name in SENTENCES:
        with wave.open(str(clip(name)), "rb") as reader:
            assert (reader.getnchannels(), reader.getsampwidth(), reader.getframerate()) == (1, 2, RATE)
        assert clip(name).stat().st_size < 200_000


def test_an_unknown_clip_is_refused_with_those_there_are() -> None:
    """The message lists the clips."""
    with pytest.raises(ValueError, match="there are hello, lights"):
        clip("goodbye")


def test_importing_the_package_imports_neither_pocketsphinx_nor_the_engine() -> None:
    """Listing and describing the predictor stay cheap."""
    code = "import engine_speech, sys; print(sorted({'pocketsphinx', 'engine'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_the_entry_point_offers_the_tag() -> None:
    """Installed, the package is found under its tag by the group's name alone."""
    (found,) = entry_points(group="predictor_engine.predictors", name="@speech/transcribe")
    assert found.value == "engine_speech:Transcribe"
    assert found.dist is not None
    assert found.dist.name == "predictor-engine-speech"
    assert found.load() is Transcribe
    assert Transcribe.__predictor__["tag"] == found.name


def test_the_public_names_are_all_there() -> None:
    """`__all__` is the truth."""
    assert all(hasattr(engine_speech, name) for name in engine_speech.__all__)


def test_the_engine_finds_it_creates_with_it_and_streams_it() -> None:
    """Discovered by tag: `create` gives the sentence, `stream` every hypothesis on the way to it."""
    from engine import Engine

    audio = clip("lights").read_bytes()
    with Engine(discover=True) as muna:
        prediction = muna.predictions.create("@speech/transcribe", {"audio": audio})
        partials = [prediction.value for prediction in muna.predictions.stream("@speech/transcribe", {"audio": audio})]
        by_path = muna.predictions.create("@speech/transcribe", {"audio": str(clip("lights"))})
    assert prediction.value == by_path.value == partials[-1] == SENTENCES["lights"]
    assert partials[0] == "turn"
