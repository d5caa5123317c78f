"""Speech in, speech out: encoder, language model and vocoder of one model directory, behind one class.

from speechgpt import SpeechGPT
reply = SpeechGPT.load("mini").reply("question.wav")
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechgpt.answers import Turn
from speechgpt.data.audio import check_waveform, read_audio
from speechgpt.data.text_normal import normalise
from speechgpt.events import AnswerText, Event, HeardText, Reply, Sound, TurnClock
from speechgpt.hearings import heard, hearings_of
from speechgpt.model_dir import ModelDir, find_model
from speechgpt.prompts import Asked, History
from speechgpt.units.devices import choose_device

if TYPE_CHECKING:
    from speechgpt.generate import Generator, Part
    from speechgpt.paced_speech import PacedSpeech
    from speechgpt.units.unit_encoder import UnitEncoder
    from speechgpt.vocoder.synthesize import Synthesizer

Recording = str | Path | np.ndarray  # an audio file, or a waveform (T,) float32 at 16 kHz

__all__ = ["Recording", "Reply", "SpeechGPT", "deduplicated", "say_units"]


class SpeechGPT:
    """The parts that are not loaded at once are loaded when first used."""

    def __init__(
        self,
        model_dir: ModelDir,
        device: str = "auto",
        encoder: bool = False,
        llm: bool = True,
        vocoder: bool = False,
    ) -> None:
        """The flags say what to load now."""
        self.model_dir = model_dir
        self.device = str(choose_device(device))
        wanted = {"encoder": encoder, "generator": llm, "synthesizer": vocoder}
        for name in (name for name, now in wanted.items() if now):
            getattr(self, name)
        self._check_sizes()

    @classmethod
    def load(cls, model: str | Path = "mini", device: str = "auto") -> "SpeechGPT":
        """`model`: a shipped model's name, or a model directory. ValueError lists the known names."""
        return cls(find_model(model), device, encoder=True, llm=True, vocoder=True)

    @cached_property
    def encoder(self) -> "UnitEncoder":
        return self.model_dir.load_encoder(self.device)

    @cached_property
    def generator(self) -> "Generator":
        return self.model_dir.load_generator(self.device)

    @cached_property
    def synthesizer(self) -> "Synthesizer":
        return self.model_dir.load_synthesizer(self.device)

    def _check_sizes(self) -> None:
        """Refuses parts from several places whose units cannot be the same. Raises ValueError."""
        sizes, parts = {}, self.model_dir
        if "generator" in self.__dict__:
            sizes[parts.llm] = self.generator.vocabulary.num_units
        if "encoder" in self.__dict__:
            sizes[parts.codebook] = self.encoder.codebook.size
        if "synthesizer" in self.__dict__:
            sizes[parts.vocoder] = self.synthesizer.vocoder.config.num_units
        if len(set(sizes.values())) > 1:
            said = ", ".join(f"{part} has {size} units" for part, size in sizes.items())
            raise ValueError(f"the parts do not belong together: {said}")

    @property
    def sample_rate(self) -> int:
        """Hz, of the waveforms that the model speaks."""
        return self.synthesizer.sample_rate

    def warm_up(self) -> "SpeechGPT":
        """Runs the parts that are loaded once, so that the first answer is timed like the others."""
        loaded = self.__dict__
        if "encoder" in loaded:
            self.encoder.encode([0.1 * np.sin(np.arange(8_000, dtype=np.float32))])
        if "generator" in loaded:
            prompt = self.generator.format.prompt_turn("hello")
            for hearings in sorted({1, self.generator.decoding.hearings}):
                steps = self.generator.steps([prompt] * hearings, "text-text", hearings)
                for _ in zip(range(2), steps, strict=False):
                    pass
        if "synthesizer" in loaded:
            speaker = self._speaker(low_latency=False)
            for unit in range(min(8, self.synthesizer.vocoder.config.num_units)):
                speaker.push(unit)
            speaker.finish()
        return self

    def reply(
        self,
        question: Recording | None = None,
        text: str | None = None,
        speech: bool = True,
        history: Sequence[Reply] = (),
        seed: int | None = None,
    ) -> Reply:
        """Answers a spoken question, or the typed `text`. `seed` fixes what a sampling model draws."""
        *_, reply = self.stream_reply(question, text, speech, history, seed)
        return reply

    def stream_reply(
        self,
        question: Recording | None = None,
        text: str | None = None,
        speech: bool = True,
        history: Sequence[Reply] = (),
        seed: int | None = None,
        low_latency: bool = False,
    ) -> Iterator[Event]:
        """The answer as it comes: pieces of `HeardText`, `AnswerText` and `Sound`, and last the `Reply`: its
        texts and waveform are the joined pieces. `history`: earlier replies, oldest first; a model of
        `single_turns` does not hear them.

        With `low_latency` sound comes before all of its context is known, and differs a little for it. A
        model that decodes by beams knows nothing before everything. Raises ValueError at the call for a
        question that cannot be answered.
        """
        if (question is None) == (text is None):
            raise ValueError("give either a recording or a text")
        clock = TurnClock()
        if text is not None:
            text = self._words(text, "the question's text")
        waveform = None if question is None else self._waveform(question)
        speaker = self._speaker(low_latency) if speech else None
        return clock.timed(self._answer(clock, waveform, text, speaker, history, seed))

    def _answer(
        self,
        clock: TurnClock,
        waveform: np.ndarray | None,
        text: str | None,
        speaker: "PacedSpeech | None",
        history: Sequence[Reply],
        seed: int | None,
    ) -> Iterator[Event]:
        frames, seconds_in = np.zeros(0, np.int64), 0.0
        asked, sounds = text, []
        if waveform is None:
            yield HeardText(text)
        else:
            seconds_in = len(waveform) / self.encoder.encoder.sample_rate
            frames, asked = self._heard(waveform)
            clock.mark("encode")
        earlier = [] if self.model_dir.config.single_turns else [r.turn for r in history]
        parts = self._parts(asked, "speech" if speaker else "text", earlier, seed)
        began = clock.now()
        for part in parts:
            clock.mark("first_token", began + self.generator.timings.first_token)
            if isinstance(part, Turn):
                turn, sound = part, speaker.finish() if speaker else ()
            elif part.section == "units":
                sound = speaker.push(part.unit)
            else:
                yield (HeardText if part.section == "transcript" else AnswerText)(part.text)
                continue
            if len(sound):
                clock.play(len(sound) / self.sample_rate)
                sounds.append(sound)
                yield Sound(sound, self.sample_rate)
        yield Reply(
            transcript=turn.transcript if text is None else text,
            answer=turn.answer,
            units=np.asarray(turn.units, dtype=np.int64),
            waveform=np.concatenate([np.zeros(0, np.float32), *sounds]) if speaker else None,
            sample_rate=self.sample_rate if speaker else 0,
            seconds_in=seconds_in,
            timings=clock.timings(),
            stalls=clock.stalls,
            question_frames=frames,
            turn=(hearings_of(asked)[0], turn),  # later prompts read it once
        )

    def _parts(self, asked: Asked, out: str, history: History, seed: int | None) -> Iterator["Part | Turn"]:
        """The answer's parts as they come, and last the whole turn."""
        from speechgpt.generate import Part

        generator = self._seeded(seed)
        if generator.decoding.beams > 1:
            turn = generator.turn(asked, out, history)
            texts = {"transcript": turn.transcript, "answer": turn.answer}
            yield from (Part(section, text) for section, text in texts.items() if text)
            yield from (Part("units", unit=unit) for unit in turn.units)
        else:
            turn = yield from generator.stream_turn(asked, out, history)
        yield turn

    def _speaker(self, low_latency: bool) -> "PacedSpeech":
        from speechgpt.paced_speech import PacedSpeech

        return PacedSpeech(self.synthesizer, self.model_dir.config.duration_scale, low_latency)

    def transcribe(self, question: Recording, seed: int | None = None) -> str:
        """What a recording says."""
        _, asked = self._heard(self._waveform(question), "asr")
        return self._seeded(seed).transcribe(asked)

    def _heard(self, waveform: np.ndarray, kind: str = "speech-text") -> "tuple[np.ndarray, Asked]":
        """Frames (N,) int64 of the recording as it is, and what the language model is asked with."""
        return heard(self.encoder, [waveform], self.generator.decoding.hearings_for(kind))[0]

    def speak(self, text: str, seed: int | None = None) -> np.ndarray:
        """(T,) float32 at `sample_rate`: the text, said."""
        return self._say(self._seeded(seed).speak_units(self._words(text, "the text")))

    def encode(self, question: Recording) -> np.ndarray:
        """A recording of any length to its units, one a frame: (N,) int64."""
        if isinstance(question, np.ndarray):
            check_waveform(question, "waveform")
            return self.encoder.encode([question])[0]
        return self.encoder.encode_file(question)

    def decode(self, units: Sequence[int], speaker: str | int | None = None) -> np.ndarray:
        """Units to (T,) float32 at `sample_rate`. One a frame they keep their timing, see `say_units`."""
        return say_units(self.synthesizer, units, speaker, self.model_dir.config.duration_scale)

    def _words(self, text: str, name: str) -> str:
        """The text as the model was trained on it; ValueError when nothing is left to say."""
        words = normalise(text) if self.model_dir.config.plain_text else text
        if not words.strip():
            raise ValueError(f"{name} is empty" if not text.strip() else f"{name} {text!r} holds no word")
        return words

    def _say(self, units: Sequence[int]) -> np.ndarray:
        """Deduplicated units (U,) to (T,) float32 at the predicted durations."""
        found = np.asarray(units, dtype=np.int64)
        return self.synthesizer.synthesize([found], duration_scale=self.model_dir.config.duration_scale)[0]

    def _seeded(self, seed: int | None) -> "Generator":
        if seed is not None:
            self.generator.decoding = replace(self.generator.decoding, seed=seed)
        return self.generator

    def _waveform(self, question: Recording) -> np.ndarray:
        """(T,) float32 at the encoder's rate, checked and within the model's limit."""
        rate, limit = self.encoder.encoder.sample_rate, self.model_dir.config.max_question_seconds
        if not isinstance(question, np.ndarray):
            return read_audio(question, rate, max_seconds=limit)
        check_waveform(question, "waveform")
        if len(question) > limit * rate:
            raise ValueError(
                f"waveform: {len(question) / rate:.0f} s of audio; the limit here is {limit:.0f} s"
            )
        return question


def deduplicated(frames: np.ndarray) -> list[int]:
    """Frames (N,) to units (U,) as the language model takes them."""
    from speechgpt.units.dedup import deduplicate

    return deduplicate(frames)[0].tolist()


def say_units(
    synthesizer: "Synthesizer",
    units: Sequence[int],
    speaker: str | int | None = None,
    duration_scale: float = 1.0,
) -> np.ndarray:
    """Units to (T,) float32. Where a unit repeats they keep their timing, one frame a unit; deduplicated
    units never repeat, and get the vocoder's own durations."""
    from speechgpt.units.dedup import deduplicate

    given = np.asarray(units, dtype=np.int64)
    found, frames = deduplicate(given)  # U, U
    if len(found) < len(given):
        return synthesizer.synthesize([found], [frames], speaker=speaker)[0]
    return synthesizer.synthesize([found], speaker=speaker, duration_scale=duration_scale)[0]
