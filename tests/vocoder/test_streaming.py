"""Streaming: the joined pieces equal the whole, the reach is tight, low latency errs and says how much."""

from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch

from speechgpt.vocoder.architecture import VocoderConfig
from speechgpt.vocoder.generator import UnitVocoder
from speechgpt.vocoder.streaming import StreamingSynthesizer
from speechgpt.vocoder.synthesize import Synthesizer

TOLERANCE = 1e-5  # of the waveform's peak


def plan(name: str, small: VocoderConfig) -> VocoderConfig:
    if name == "published, narrow":  # the published plan: rates, kernels, dilations and so reach
        return VocoderConfig(num_units=50, embedding_dim=16, initial_channels=64, duration_width=16)
    if name == "other rates and kernels":
        return replace(
            small,
            upsample_rates=[3, 4, 2],
            upsample_kernels=[9, 6, 2],
            resblock_kernels=[5, 9, 3],
            resblock_dilations=[[2], [1, 3], [4, 1, 1]],
            duration_kernel=5,
        )
    return small


def loud(config: VocoderConfig) -> UnitVocoder:
    """Random weights that keep the signal's size from layer to layer, so that every layer is heard."""
    torch.manual_seed(0)
    model = UnitVocoder(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 3:
                fan_in = parameter[0].numel() if "ups" not in name else parameter[:, 0].numel() / 2
                parameter.normal_(0, 0.7 / fan_in**0.5)
        speaker = torch.ones(1, config.speaker_vector_dim) if config.speaker_vector_dim else None
        heard = []
        hook = model.conv_post.register_forward_hook(lambda _, __, sound: heard.append(sound))
        model(torch.randint(config.num_units, (1, 30)), speaker)
        hook.remove()
        model.conv_post.weight.mul_(0.5 / heard[0].std())
        model.conv_post.bias.sub_(heard[0].mean()).mul_(0.5 / heard[0].std())
        model.dur_predictor.proj.weight.normal_(0, 0.1)
        model.dur_predictor.proj.bias.fill_(1.0)
    return model


@pytest.fixture(scope="module")
def mini() -> Synthesizer:
    return Synthesizer.load(str(files("speechgpt") / "models" / "mini" / "vocoder"), "cpu")


def units_of(size: int, count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(size, size=count).tolist()


def stream(synthesizer, units, pieces, speaker=None, **options):
    """The joined sound of units pushed `pieces` at a time (a number, or a generator of numbers)."""
    streaming = StreamingSynthesizer(synthesizer, speaker, **options)
    sounds, start = [], 0
    while start < len(units):
        size = pieces if isinstance(pieces, int) else int(pieces.integers(0, 9))
        sounds.append(streaming.push(units[start : start + size]))
        start += size
    return np.concatenate([*sounds, streaming.finish()])


def assert_equal(stream: np.ndarray, whole: np.ndarray) -> None:
    assert stream.dtype == np.float32 and stream.shape == whole.shape
    assert np.abs(stream - whole).max() <= TOLERANCE * np.abs(whole).max()


PIECES = [1, 7, 1000, np.random.default_rng(1)]


@pytest.mark.parametrize("pieces", PIECES, ids=["one by one", "sevens", "at once", "random"])
@pytest.mark.parametrize("name", ["small", "published, narrow", "other rates and kernels"])
def test_the_joined_stream_is_the_whole_sound(small, name, pieces):
    synthesizer = Synthesizer(loud(plan(name, small)))
    units = units_of(synthesizer.vocoder.config.num_units, 90)
    whole = synthesizer.synthesize([units])[0]
    assert whole.std() > 0.05 and len(whole) > 150 * synthesizer.hop
    assert_equal(stream(synthesizer, units, pieces), whole)
    assert_equal(stream(synthesizer, units, pieces, chunk_frames=1, first_chunk_frames=1), whole)


@pytest.mark.parametrize("pieces", PIECES, ids=["one by one", "sevens", "at once", "random"])
@pytest.mark.parametrize("speaker", [None, "slt", 0])
def test_mini_streams_what_it_speaks(mini, speaker, pieces):
    units = units_of(256, 60)
    whole = mini.synthesize([units], speaker=speaker)[0]
    assert_equal(stream(mini, units, pieces, speaker), whole)


def test_the_published_size_streams_what_it_speaks():
    synthesizer = Synthesizer(loud(VocoderConfig()))
    units = units_of(1000, 30)
    whole = synthesizer.synthesize([units])[0]
    assert whole.std() > 0.05
    assert_equal(stream(synthesizer, units, 8), whole)


def test_slower_speech_and_speaker_vectors(small):
    synthesizer = Synthesizer(loud(replace(small, speaker_vector_dim=5, duration_speaker=True)))
    units, voice = units_of(6, 40), np.linspace(-1, 1, 5, dtype=np.float32)
    whole = synthesizer.synthesize([units], speaker=voice, duration_scale=1.7)[0]
    assert_equal(stream(synthesizer, units, 5, voice, duration_scale=1.7), whole)


def test_very_many_units_at_once_go_in_pieces_of_bounded_size(small, monkeypatch):
    synthesizer, sizes = Synthesizer(loud(small)), []
    speak = synthesizer.speak
    monkeypatch.setattr(synthesizer, "speak", lambda f, s: (sizes.append(len(f[0])), speak(f, s))[1])
    units = units_of(6, 900)
    whole = synthesizer.synthesize([units])[0]
    sizes.clear()
    assert_equal(stream(synthesizer, units, 900), whole)
    assert max(sizes) <= 500 + sum(small.frame_reach)


def test_memory_does_not_grow_with_the_stream(small):
    streaming = StreamingSynthesizer(Synthesizer(loud(small)))
    for part in range(30):
        streaming.push(units_of(6, 20, part))
        held = len(streaming._frames) + len(streaming._units)
        longest = 20 * 30  # frames of one push
        assert held < 2 * sum(small.frame_reach) + streaming.chunk_frames + 20 + longest
    assert streaming._frames.base is None or len(streaming._frames.base) < 1000


def test_nothing_and_one_unit(mini):
    streaming = StreamingSynthesizer(mini)
    assert streaming.finish().shape == (0,) and streaming.push([]).shape == (0,)
    assert streaming.push([3]).shape == (0,)
    assert_equal(streaming.finish(), mini.synthesize([[3]])[0])
    assert streaming.finish().shape == (0,)  # ready for another, of which nothing came


def test_it_is_ready_for_another_utterance(mini):
    streaming = StreamingSynthesizer(mini)
    for seed in (1, 2):
        units = units_of(256, 50, seed)
        sound = np.concatenate([streaming.push(units[:20]), streaming.push(units[20:]), streaming.finish()])
        assert_equal(sound, mini.synthesize([units])[0])


def test_the_first_sound_comes_before_the_last_unit(mini):
    streaming = StreamingSynthesizer(mini, first_chunk_frames=2)
    units = units_of(256, 60)
    durations = mini.durations([units])[0]
    first = next(n for n in range(60) if len(streaming.push(units[n : n + 1])))
    reach = mini.vocoder.config.frame_reach[1]
    # No unit sooner or later than the context asks for.
    assert durations[: first + 1 - 2].sum() >= 2 + reach > durations[: first - 2].sum()


@pytest.mark.parametrize("name", ["small", "published, narrow", "other rates and kernels", "mini"])
def test_the_reach_of_a_frame_is_tight(small, name, mini):
    """By gradients: through thirty layers the outermost frames' share is below what a sum can hold."""
    model = mini.vocoder if name == "mini" else loud(plan(name, small))
    model = UnitVocoder(replace(model.config, num_speakers=0, speakers=[])).double().eval()
    left, right = model.config.frame_reach
    middle, count = left + 3, left + right + 7
    x = torch.randn(1, model.config.embedding_dim, count, dtype=torch.float64, requires_grad=True)
    sound = model.generate(x)[0, 0, middle * model.hop : (middle + 1) * model.hop]
    sound.abs().sum().backward()
    reached = x.grad[0].abs().sum(0).nonzero().flatten()
    assert reached.tolist() == list(range(middle - left, middle + right + 1))


@pytest.mark.parametrize("name", ["small", "mini"])
def test_a_unit_beyond_the_reach_changes_nothing(small, name, mini):
    model = (mini.vocoder if name == "mini" else loud(small)).double()
    left, right = model.config.frame_reach
    middle, count = left + 3, left + right + 7
    frames = torch.randint(model.config.num_units, (1, count), generator=torch.Generator().manual_seed(0))
    speaker = torch.tensor([0]) if name == "mini" else None

    def sound(frames):
        with torch.inference_mode():
            return model(frames, speaker)[0, middle * model.hop : (middle + 1) * model.hop]

    before = sound(frames)
    for distance in (-left - 1, -left, right, right + 1):
        changed = frames.clone()
        changed[0, middle + distance] = (changed[0, middle + distance] + 1) % model.config.num_units
        assert torch.equal(sound(changed), before) == (distance in (-left - 1, right + 1)), distance
    model.float()


@pytest.mark.parametrize("name", ["small", "other rates and kernels"])
def test_the_reach_of_a_duration_is_tight(small, name):
    model = loud(plan(name, small)).double()
    reach, size = model.config.unit_reach, model.config.num_units
    units = torch.arange(2 * reach + 7)[None] % size
    middle = reach + 3
    with torch.inference_mode():
        before = model.dur_predictor(model.dict(units))[0, middle]
        for distance in (-reach - 1, -reach, reach, reach + 1):
            changed = units.clone()
            changed[0, middle + distance] = (changed[0, middle + distance] + 1) % size
            after = model.dur_predictor(model.dict(changed))[0, middle]
            assert bool((after - before).abs() > 0) == (abs(distance) <= reach)


def test_the_published_reach():
    assert VocoderConfig().frame_reach == (21, 21) and VocoderConfig().unit_reach == 2


def test_low_latency_errs_less_with_more_context(mini):
    units = units_of(256, 60)
    whole = mini.synthesize([units])[0]

    def error(right_frames):
        sound = stream(mini, units, 1, right_frames=right_frames, chunk_frames=5)
        return float(np.sqrt(np.square(sound - whole).mean()) / np.sqrt(np.square(whole).mean()))

    errors = [error(right_frames) for right_frames in (0, 2, 5, 9, None)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-5 < errors[-2]


@pytest.mark.parametrize("right_frames", [0, 1, 6])
def test_durations_are_the_same_in_every_mode(mini, right_frames):
    """With less context every unit would look like the utterance's last, and last ones are long."""
    units = units_of(256, 60)
    sounds = [stream(mini, units, pieces, right_frames=right_frames) for pieces in (1, 4, 60)]
    assert {len(sound) for sound in sounds} == {len(mini.synthesize([units])[0])}


def test_low_latency_speaks_sooner(mini):
    def first(**options):
        streaming = StreamingSynthesizer(mini, first_chunk_frames=5, **options)
        return next(n for n in range(60) if len(streaming.push([n])))

    assert first(right_frames=0) < first(right_frames=8) < first()


def test_what_it_refuses(mini, small):
    streaming = StreamingSynthesizer(mini)
    streaming.push([1, 2, 3])
    with pytest.raises(ValueError, match="unit 256 .*K = 256"):
        streaming.push([4, 256])
    assert len(streaming.finish()) == len(mini.synthesize([[1, 2, 3]])[0])  # the stream stayed as it was
    with pytest.raises(ValueError, match="'eve'"):
        StreamingSynthesizer(mini, "eve")
    with pytest.raises(ValueError, match="right_frames is -1"):
        StreamingSynthesizer(mini, right_frames=-1)
    with pytest.raises(ValueError, match="first_chunk_frames is 0"):
        StreamingSynthesizer(mini, first_chunk_frames=0)
    with pytest.raises(ValueError, match="duration_scale is 0"):
        StreamingSynthesizer(mini, duration_scale=0)
    mute = Synthesizer(UnitVocoder(replace(small, duration_predictor=False)))
    with pytest.raises(ValueError, match="no duration predictor"):
        StreamingSynthesizer(mute)
