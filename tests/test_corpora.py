from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from train.corpora import (
    LABELS,
    CorpusError,
    Utterance,
    load_corpus,
    load_data,
    load_iemocap,
    load_manifest,
    read_samples,
)

# angry, happy, neutral, sad, none of them; speakers. From the README of the data.
README_COUNTS = {
    "ravdess": ((160, 159, 80, 160), 640, 20),
    "emodb": ((100, 54, 63, 49), 0, 8),
    "nemo": ((230, 236, 251, 233), 427, 7),
    "banglaser": ((270, 268, 206, 270), 270, 30),
}


def write_tone(path: Path, *, num_samples: int = 1600, rate: int = 16_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(num_samples) / rate)
    soundfile.write(path, tone, rate)
    return path


def write_manifest(folder: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path = folder / "speech.csv"
    path.write_text("".join(f"{line}\n" for line in lines), encoding=encoding)
    return path


def utterance_of(path: Path, **fields: object) -> Utterance:
    known: dict[str, object] = {
        "path": path,
        "corpus": "mine",
        "speaker": "anna",
        "label": "sad",
        "duration_s": 0.1,
    }
    return Utterance(**(known | fields))  # type: ignore[arg-type]


# The corpora beside the checkout


def test_counts_are_those_of_the_readme(speech_data: Path) -> None:
    utterances = load_data(speech_data)
    found = {}
    for corpus in {utterance.corpus for utterance in utterances}:
        mine = [utterance for utterance in utterances if utterance.corpus == corpus]
        labels = Counter(utterance.label for utterance in mine)
        speakers = {utterance.speaker for utterance in mine}
        found[corpus] = (tuple(labels[label] for label in LABELS), labels[None], len(speakers))
    assert found == README_COUNTS
    assert sum(utterance.label is not None for utterance in utterances) == 2789
    assert len({utterance.speaker_id for utterance in utterances}) == 65


def test_loaded_data_is_sorted_and_its_ids_are_unique(speech_data: Path) -> None:
    ids = [utterance.utterance_id for utterance in load_data(speech_data)]
    assert ids == sorted(set(ids))
    assert "emodb/03a01Wa" in ids


def test_one_corpus_is_what_all_of_them_hold_of_it(speech_data: Path) -> None:
    everything = load_data(speech_data)
    assert load_corpus(speech_data / "emodb") == tuple(
        utterance for utterance in everything if utterance.corpus == "emodb"
    )


def test_real_speech_reads_as_long_as_its_manifest_says(speech_data: Path) -> None:
    for utterance in load_data(speech_data)[::250]:
        samples = read_samples(utterance)
        assert samples.dtype == np.float32 and samples.ndim == 1
        assert np.abs(samples).max() <= 1.0
        # The manifest rounds to 1 ms.
        assert len(samples) / 16_000 == pytest.approx(utterance.duration_s, abs=0.001)


def test_folder_without_speech_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noises").mkdir()
    (tmp_path / "noises" / "manifest.csv").write_text("path,kind\nrain.flac,noise\n")
    with pytest.raises(CorpusError, match="found no speech corpus, expected folders"):
        load_data(tmp_path)


def test_corpus_needs_all_speech_columns(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("path,speaker,label\na.wav,anna,sad\n")
    with pytest.raises(CorpusError, match="missing column corpus, gender, emotion, language"):
        load_corpus(tmp_path)


# A user's own manifest


def test_manifest_of_three_columns(tmp_path: Path) -> None:
    folder = tmp_path / "calls"
    for name in ("b", "a"):
        write_tone(folder / f"{name}.wav")
    path = write_manifest(folder, "path,speaker,label", "b.wav,bert,sad", "", "a.wav, anna ,")
    first, second = load_manifest(path)
    assert first == Utterance(
        path=folder / "a.wav", corpus="calls", speaker="anna", label=None, duration_s=0.1, name="a"
    )
    assert (second.utterance_id, second.speaker_id) == ("calls/b", "calls/bert")
    assert second.label == "sad"


def test_manifest_saved_by_a_spreadsheet_has_a_byte_order_mark(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav")
    path = write_manifest(
        tmp_path, "path,speaker,label,sentence", "a.wav,Zoë,sad,Lubię czytać", encoding="utf-8-sig"
    )
    (utterance,) = load_manifest(path)
    assert (utterance.speaker, utterance.sentence) == ("Zoë", "Lubię czytać")


def test_folders_that_share_base_names_are_told_apart(tmp_path: Path) -> None:
    write_tone(tmp_path / "anna" / "1.wav")
    write_tone(tmp_path / "bert" / "1.wav")
    path = write_manifest(
        tmp_path, "corpus,path,speaker,label", "x,anna/1.wav,anna,sad", "x,bert/1.wav,bert,sad"
    )
    assert [u.utterance_id for u in load_manifest(path)] == ["x/anna/1", "x/bert/1"]


def test_parts_of_one_file_are_utterances(tmp_path: Path) -> None:
    write_tone(tmp_path / "call.wav", num_samples=16_000)
    path = write_manifest(
        tmp_path,
        "corpus,path,speaker,label,start_s,end_s",
        "x,call.wav,anna,sad,,0.25",
        "x,call.wav,anna,angry,0.25,",
    )
    start, rest = load_manifest(path)
    assert (start.utterance_id, start.duration_s) == ("x/call@0.000-0.250", 0.25)
    assert (rest.utterance_id, rest.duration_s) == ("x/call@0.250-", 0.75)
    whole = read_samples(utterance_of(tmp_path / "call.wav", duration_s=1.0))
    np.testing.assert_array_equal(np.concatenate([read_samples(start), read_samples(rest)]), whole)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "found an empty file, expected a header line"),
        (("path,speaker,label",), "found no utterances"),
        (
            ("path,who,label", "a.wav,anna,sad"),
            "missing column speaker: found path, who, label, expected path, speaker, label",
        ),
        (("path,speaker,label,label", "a.wav,anna,sad,sad"), "found a column twice"),
        (
            ("path,speaker,label", "a.wav,anna,sad", "b.wav,anna,Happy"),
            r"speech\.csv:3: found label 'Happy', expected one of angry, happy, neutral, sad",
        ),
        (("path,speaker,label", "a.wav,anna"), r"csv:2: found 2 cells, expected 3"),
        (("path,speaker,label", "a.wav,,sad"), r"csv:2: found an empty speaker"),
        (("path,speaker,label", ",anna,sad"), r"csv:2: found an empty path"),
        (("path,speaker,label", "c.wav,anna,sad"), r"csv:2: expected the audio file .*c\.wav"),
        (
            ("path,speaker,label", "a.wav,anna,sad", "b.wav,anna,sad", "./a.wav,bert,sad"),
            r"csv:4: \./a\.wav was given on line 2 already",
        ),
        (("path,speaker,label,duration_s", "a.wav,anna,sad,soon"), "found duration_s 'soon'"),
        (("path,speaker,label,duration_s", "a.wav,anna,sad,nan"), "found duration_s 'nan'"),
        (("path,speaker,label,duration_s", "a.wav,anna,sad,0"), "found a duration of 0.0 s"),
        (("path,speaker,label,start_s,end_s", "a.wav,anna,sad,2,1"), "found end_s 1.0"),
        (("path,speaker,label,start_s", "a.wav,anna,sad,9"), "found a duration of -8.9 s"),
        (("path,speaker,label", "text.wav,anna,sad"), r"text\.wav: cannot be read as audio"),
        (("path,speaker,label", '"a.wav"x,anna,sad'), r"csv:2: not a CSV"),
    ],
)
def test_wrong_manifest_is_refused(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    write_tone(tmp_path / "a.wav")
    write_tone(tmp_path / "b.wav")
    (tmp_path / "text.wav").write_text("this is not audio")
    with pytest.raises(CorpusError, match=message):
        load_manifest(write_manifest(tmp_path, *lines))


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav")
    write_tone(tmp_path / "a.flac")
    path = write_manifest(tmp_path, "path,speaker,label", "a.wav,anna,sad", "a.flac,bert,sad")
    with pytest.raises(CorpusError, match=r"/a twice, as .*a\.wav and as .*a\.flac"):
        load_manifest(path)


def test_manifest_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"none\.csv: cannot be read \(No such file"):
        load_manifest(tmp_path / "none.csv")
    latin = write_manifest(tmp_path, "path,speaker,label", "a.wav,Zoë,sad", encoding="latin-1")
    with pytest.raises(CorpusError, match="is not UTF-8"):
        load_manifest(latin)


# IEMOCAP, on a made-up tree of its layout


def iemocap_line(name: str, emotion: str) -> str:
    return f"[6.2901 - 8.2357]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]"


@pytest.fixture
def iemocap(tmp_path: Path) -> Path:
    """Each session: one improvised dialog with every word, one from a script."""
    words = ("ang", "hap", "exc", "neu", "sad", "fru", "xxx")
    for session in range(1, 6):
        folder = tmp_path / f"Session{session}"
        evaluations = folder / "dialog" / "EmoEvaluation"
        evaluations.mkdir(parents=True)
        (evaluations / f"._Ses0{session}F_impro01.txt").write_bytes(b"\x00\x05\x16\x07\xb0")
        (evaluations / "Categorical").mkdir()
        for dialog, emotions in (
            (f"Ses0{session}F_impro01", words),
            (f"Ses0{session}M_script01_1", ("ang",)),
        ):
            lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
            for number, emotion in enumerate(emotions):
                name = f"{dialog}_{'FM'[number % 2]}{number:03d}"
                lines += [iemocap_line(name, emotion), "C-E2:\tNeutral;\t()", ""]
                write_tone(folder / "sentences" / "wav" / dialog / f"{name}.wav", num_samples=320)
            (evaluations / f"{dialog}.txt").write_text("\n".join(lines))
    return tmp_path


def test_iemocap_has_excited_in_the_place_of_happy(iemocap: Path) -> None:
    utterances = load_iemocap(iemocap)
    session = [u for u in utterances if u.path.stem.startswith("Ses01")]
    assert [(u.emotion, u.label) for u in sorted(session, key=lambda u: u.path.stem[-3:])] == [
        ("ang", "angry"),
        ("exc", "happy"),
        ("neu", "neutral"),
        ("sad", "sad"),
        ("fru", None),
        ("xxx", None),
    ]
    assert len(utterances) == 5 * 6


def test_iemocap_merges_happy_and_excited_on_request(iemocap: Path) -> None:
    words = Counter(
        u.emotion for u in load_iemocap(iemocap, happy=("exc", "hap")) if u.label == "happy"
    )
    assert words == {"exc": 5, "hap": 5}


def test_iemocap_speaker_is_who_speaks_not_who_wears_the_markers(iemocap: Path) -> None:
    utterances = load_iemocap(iemocap)
    by_stem = {u.path.stem: u for u in utterances}
    man = by_stem["Ses01F_impro01_M003"]
    assert (man.speaker, man.gender, man.language) == ("Ses01M", "male", "en")
    assert man.utterance_id == "iemocap/Ses01F_impro01_M003"
    assert man.duration_s == 0.02
    assert len({u.speaker for u in utterances}) == 10


def test_iemocap_scripts_come_on_request(iemocap: Path) -> None:
    scripted = [u for u in load_iemocap(iemocap, improvised_only=False) if "script" in u.path.stem]
    assert len(scripted) == 5
    assert {u.label for u in scripted} == {"angry"}


def test_iemocap_that_is_broken_is_refused(iemocap: Path) -> None:
    with pytest.raises(CorpusError, match="happy: found"):
        load_iemocap(iemocap, happy=("joy",))
    txt = iemocap / "Session5" / "dialog" / "EmoEvaluation" / "Ses05F_impro01.txt"
    txt.write_text(iemocap_line("Ses05F_impro01_F099", "neu"))
    with pytest.raises(CorpusError, match=r"impro01\.txt:1: expected the audio file .*F099\.wav"):
        load_iemocap(iemocap)
    txt.write_text("[6.2901 - 8.2357] Ses05F_impro01_F000 neu\n")
    with pytest.raises(CorpusError, match=r"impro01\.txt:1: found '\[6"):
        load_iemocap(iemocap)
    txt.unlink()
    txt.with_name("Ses05M_script01_1.txt").unlink()
    with pytest.raises(CorpusError, match="expected Session1, Session2"):
        load_iemocap(iemocap)


# Samples


def test_samples_are_what_the_file_holds(tmp_path: Path) -> None:
    wave = np.linspace(-1, 1, 1600, endpoint=False, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    samples = read_samples(utterance_of(tmp_path / "a.wav"))
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, wave)


def test_channels_become_their_mean(tmp_path: Path) -> None:
    both = np.stack([np.full(1600, 0.5), np.full(1600, -0.25)], axis=1).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", both, 16_000, subtype="FLOAT")
    samples = read_samples(utterance_of(tmp_path / "a.wav"))
    np.testing.assert_array_equal(samples, np.full(1600, 0.125, dtype=np.float32))


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_other_rates_are_resampled(tmp_path: Path, rate: int) -> None:
    path = write_tone(tmp_path / "a.wav", num_samples=rate, rate=rate)
    samples = read_samples(utterance_of(path, duration_s=1.0))
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert samples.dtype == np.float32 and len(samples) == 16_000
    # 16-bit files round by 1.5e-5; at the edges, 5 ms of filter, the tone starts and stops.
    np.testing.assert_allclose(samples[100:-100], expected[100:-100], atol=1e-4)


def test_rate_that_the_resampler_does_not_take_is_refused(tmp_path: Path) -> None:
    path = write_tone(tmp_path / "a.wav", num_samples=96_000, rate=96_000)
    with pytest.raises(CorpusError, match=r"a\.wav: .*96000"):
        read_samples(utterance_of(path, duration_s=1.0))


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 32_000)
    soundfile.write(path, noise, 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CorpusError, match=rf"a\.{suffix}: "):
        read_samples(utterance_of(path, duration_s=2.0))


def test_part_beyond_the_end_is_refused(tmp_path: Path) -> None:
    path = write_tone(tmp_path / "a.wav")
    with pytest.raises(CorpusError, match="expected samples 800 to 3200, found 1600"):
        read_samples(utterance_of(path, start_s=0.05, end_s=0.2, duration_s=0.15))


def test_file_that_is_no_audio_or_holds_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("this is not audio")
    with pytest.raises(CorpusError, match=r"text\.wav: cannot be read as audio"):
        read_samples(utterance_of(tmp_path / "text.wav"))
    with pytest.raises(CorpusError, match=r"none\.wav: cannot be read as audio"):
        read_samples(utterance_of(tmp_path / "none.wav"))
    path = write_tone(tmp_path / "empty.wav", num_samples=0)
    with pytest.raises(CorpusError, match="expected samples 0 to 0, found 0"):
        read_samples(utterance_of(path))


def test_sample_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    wave = np.zeros(1600, dtype=np.float32)
    wave[7] = np.nan
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    with pytest.raises(CorpusError, match=r"a\.wav: found a sample that is not finite"):
        read_samples(utterance_of(tmp_path / "a.wav"))
