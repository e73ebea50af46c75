"""Speech on disk as utterances: the corpora at hand, a user's own manifest, IEMOCAP."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from streamer.arrays import Samples
from streamer.audio import Resampler
from streamer.errors import AudioError, SerStreamError

LABELS = ("angry", "happy", "neutral", "sad")
SAMPLE_RATE = 16_000

SPEECH_COLUMNS = (
    "path",
    "corpus",
    "speaker",
    "gender",
    "emotion",
    "label",
    "language",
    "duration_s",
    "sentence",
)
REQUIRED_COLUMNS = ("path", "speaker", "label")

# Manifests round durations to 1 ms and coders pad by less than a frame; a file that is shorter
# than its manifest says by more than this has lost its end.
DURATION_TOLERANCE_S = 0.05

IEMOCAP_SESSIONS = ("Session1", "Session2", "Session3", "Session4", "Session5")
_IEMOCAP_LABELS = {"ang": "angry", "neu": "neutral", "sad": "sad"}
_IEMOCAP_HAPPY = ("hap", "exc")
_IEMOCAP_GENDERS = {"F": "female", "M": "male"}
_IEMOCAP_LINE = re.compile(
    r"\[\d+\.\d+ - \d+\.\d+\]\t(?P<name>(?P<session>Ses\d\d)\S+_(?P<gender>[FM])\w*)"
    r"\t(?P<emotion>\w+)\t\[.*\]\s*"
)


class CorpusError(SerStreamError):
    """Speech on disk, or its description, is not what training can use."""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One stretch of speech by one speaker in one emotion.

    `speaker` is unique inside its corpus only (several corpora have a speaker "03"):
    compare `speaker_id`. `label` is one of LABELS, or None where the emotion is none of the four:
    such an utterance is never part of a four-class score. `start_s` and `end_s` name a part of
    the file; None is the file's own start or end. `name` is unique inside its corpus and is the
    file's base name, or its path in a manifest whose folders share base names.
    """

    path: Path
    corpus: str
    speaker: str
    label: str | None
    duration_s: float
    gender: str = ""
    emotion: str = ""
    language: str = ""
    sentence: str = ""
    start_s: float | None = None
    end_s: float | None = None
    name: str = ""

    @property
    def utterance_id(self) -> str:
        """`corpus/name`, with the seconds of the part where it is one: unique among all loaded."""
        whole = f"{self.corpus}/{self.name or self.path.stem}"
        if self.start_s is None and self.end_s is None:
            return whole
        end = "" if self.end_s is None else f"{self.end_s:.3f}"
        return f"{whole}@{self.start_s or 0.0:.3f}-{end}"

    @property
    def speaker_id(self) -> str:
        """`corpus/speaker`: unique among all corpora."""
        return f"{self.corpus}/{self.speaker}"


def load_data(root: Path) -> tuple[Utterance, ...]:
    """Every speech corpus under `root`, sorted by utterance id.

    A corpus is a folder of `root` whose `manifest.csv` has SPEECH_COLUMNS. Others (noises, room
    responses) are not speech for training and are passed over.

    Raises:
        CorpusError: no such folder, or one whose manifest is wrong.
    """
    root = Path(root)
    manifests = sorted(root.glob("*/manifest.csv"))
    folders = [csv_.parent for csv_ in manifests if _has_speech_columns(csv_)]
    if not folders:
        raise CorpusError(
            f"{root}: found no speech corpus, expected folders with a manifest.csv "
            f"that has the columns {', '.join(SPEECH_COLUMNS)}"
        )
    return _sorted(utterance for folder in folders for utterance in load_corpus(folder))


def load_corpus(folder: Path) -> tuple[Utterance, ...]:
    """One corpus: `folder/manifest.csv`, which must have all of SPEECH_COLUMNS.

    Raises:
        CorpusError: as `load_manifest`.
    """
    return _read_manifest(Path(folder) / "manifest.csv", SPEECH_COLUMNS)


def load_manifest(csv_path: Path) -> tuple[Utterance, ...]:
    """A user's own speech: a CSV file (UTF-8) with the columns `path`, `speaker` and `label`.

    Paths are relative to the CSV's folder. An empty label means an emotion outside the four.
    Optional columns: `corpus` (else the folder's name), `gender`, `emotion`, `language`,
    `sentence`, `duration_s` (else read from the file), `start_s` and `end_s` (a part of the file).
    Sorted by utterance id.

    Raises:
        CorpusError: no such CSV, not UTF-8, no rows, a column missing, an unknown label, an empty
            speaker, a bad number, an audio file that is missing, or an utterance given twice.
    """
    return _read_manifest(Path(csv_path), REQUIRED_COLUMNS)


def _read_manifest(csv_path: Path, required: Sequence[str]) -> tuple[Utterance, ...]:
    header, rows = _read_csv(csv_path)
    missing = [column for column in required if column not in header]
    if missing:
        raise CorpusError(
            f"{csv_path}: missing column {', '.join(missing)}: found {', '.join(header)}, "
            f"expected {', '.join(required)}"
        )
    if not rows:
        raise CorpusError(f"{csv_path}: found no utterances, expected one a line below the header")
    names = _names(row["path"] for _, row in rows)
    seen: dict[tuple[Path, float | None, float | None], int] = {}
    utterances = []
    for line, row in rows:
        utterance = _utterance_from_row(row, names[row["path"]], csv_path, line)
        key = (utterance.path.resolve(), utterance.start_s, utterance.end_s)
        if key in seen:
            raise CorpusError(
                f"{csv_path}:{line}: {row['path']} was given on line {seen[key]} already, "
                "expected every utterance once"
            )
        seen[key] = line
        utterances.append(utterance)
    return _sorted(utterances)


def _read_csv(csv_path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The header, and each row with its line number; cells stripped."""
    try:
        with csv_path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = []
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise CorpusError(
                        f"{csv_path}:{reader.line_num}: found {len(cells)} cells, expected "
                        f"{len(header)}: {', '.join(header)}"
                    )
                stripped = (cell.strip() for cell in cells)
                rows.append((reader.line_num, dict(zip(header, stripped, strict=True))))
    except OSError as error:
        raise CorpusError(
            f"{csv_path}: cannot be read ({error.strerror}), expected a CSV"
        ) from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{csv_path}: byte {error.start} is not UTF-8, expected UTF-8") from error
    except csv.Error as error:
        raise CorpusError(f"{csv_path}:{reader.line_num}: not a CSV ({error})") from error
    if not header:
        raise CorpusError(f"{csv_path}: found an empty file, expected a header line and utterances")
    if len(set(header)) != len(header):
        raise CorpusError(f"{csv_path}: found a column twice: {', '.join(header)}")
    return header, rows


def _has_speech_columns(csv_path: Path) -> bool:
    return set(SPEECH_COLUMNS) <= set(_read_csv(csv_path)[0])


def _utterance_from_row(row: Mapping[str, str], name: str, csv_path: Path, line: int) -> Utterance:
    where = f"{csv_path}:{line}"
    if row["label"] and row["label"] not in LABELS:
        raise CorpusError(
            f"{where}: found label {row['label']!r}, expected one of {', '.join(LABELS)}, "
            "or nothing for another emotion"
        )
    if not row["path"] or not row["speaker"]:
        empty = "speaker" if row["path"] else "path"
        raise CorpusError(f"{where}: found an empty {empty}, expected one on every line")
    folder = csv_path.resolve().parent
    path = folder / row["path"]
    if not path.is_file():
        raise CorpusError(f"{where}: expected the audio file {path}, found none")
    start_s, end_s = _seconds(row, "start_s", where), _seconds(row, "end_s", where)
    if end_s is not None and end_s <= (start_s or 0.0):
        raise CorpusError(f"{where}: found end_s {end_s}, expected more than start_s")
    duration_s = _seconds(row, "duration_s", where)
    if duration_s is None:
        file_end_s = end_s if end_s is not None else _file_duration_s(path)
        duration_s = file_end_s - (start_s or 0.0)
    if duration_s <= 0.0:
        raise CorpusError(f"{where}: found a duration of {duration_s} s, expected more than 0")
    return Utterance(
        path=path,
        corpus=row.get("corpus") or folder.name,
        speaker=row["speaker"],
        label=row["label"] or None,
        duration_s=duration_s,
        gender=row.get("gender", ""),
        emotion=row.get("emotion", ""),
        language=row.get("language", ""),
        sentence=row.get("sentence", ""),
        start_s=start_s,
        end_s=end_s,
        name=name,
    )


def _names(paths: Iterable[str]) -> dict[str, str]:
    """What to call each file: its base name or, where folders share those, its path as well."""
    stems = {path: Path(path).stem for path in paths}
    if len(set(stems.values())) == len(stems):
        return stems
    return {path: Path(path).with_suffix("").as_posix() for path in stems}


def _seconds(row: Mapping[str, str], column: str, where: str) -> float | None:
    text = row.get(column, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0.0:
        raise CorpusError(f"{where}: found {column} {text!r}, expected seconds, 0 or more")
    return value


def _sorted(utterances: Iterable[Utterance]) -> tuple[Utterance, ...]:
    """By utterance id, each of which may be there once."""
    by_id: dict[str, Utterance] = {}
    for utterance in utterances:
        other = by_id.setdefault(utterance.utterance_id, utterance)
        if other is not utterance:
            raise CorpusError(
                f"found {utterance.utterance_id} twice, as {other.path} and as {utterance.path}, "
                "expected names that are unique inside a corpus"
            )
    return tuple(by_id[key] for key in sorted(by_id))


def load_iemocap(
    root: Path, *, improvised_only: bool = True, happy: Sequence[str] = ("exc",)
) -> tuple[Utterance, ...]:
    """IEMOCAP in its official layout, sorted by utterance id.

    Read are `Session<n>/dialog/EmoEvaluation/*.txt` and, for each utterance there,
    `Session<n>/sentences/wav/<dialog>/<utterance>.wav`, n from 1 to 5.
    `ang`, `neu` and `sad` are angry, neutral and sad; the words in `happy`, of "hap" and "exc",
    are happy. The paper (section 3.1) has excited in the place of happy: ("exc",); many others
    merge the two: ("exc", "hap"). Of these two a word that is not in `happy` is left out, being
    neither the class nor outside it. All other words have no label.
    The speaker is the session and the gender of who speaks: Ses01F_impro01_M003 is by Ses01M.

    Raises:
        CorpusError: a session, a wav or every utterance is missing, or a line is not understood.
    """
    unknown = sorted(set(happy) - set(_IEMOCAP_HAPPY))
    if unknown or not happy:
        raise CorpusError(f"happy: found {tuple(happy)}, expected some of {_IEMOCAP_HAPPY}")
    left_out = set(_IEMOCAP_HAPPY) - set(happy)
    labels = {**_IEMOCAP_LABELS, **dict.fromkeys(happy, "happy")}
    utterances: list[Utterance] = []
    for session in IEMOCAP_SESSIONS:
        evaluations = Path(root).resolve() / session / "dialog" / "EmoEvaluation"
        # The release carries macOS's "._*" leftovers beside the real files.
        dialogs = [txt for txt in sorted(evaluations.glob("*.txt")) if txt.name[0] != "."]
        if not dialogs:
            raise CorpusError(
                f"found no {evaluations}/*.txt, expected {', '.join(IEMOCAP_SESSIONS)} of IEMOCAP "
                "with their evaluations"
            )
        for txt in dialogs:
            if improvised_only and "impro" not in txt.stem:
                continue
            found = _iemocap_dialog(txt, labels)
            utterances += [utterance for utterance in found if utterance.emotion not in left_out]
    if not utterances:
        raise CorpusError(f"{root}: found no utterances in the evaluations, expected some")
    return _sorted(utterances)


def _iemocap_dialog(txt: Path, labels: Mapping[str, str]) -> list[Utterance]:
    wavs = txt.parents[2] / "sentences" / "wav" / txt.stem
    utterances = []
    for number, line in enumerate(txt.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("["):  # the header, blank lines, and each annotator's own opinion
            continue
        match = _IEMOCAP_LINE.fullmatch(line)
        if match is None:
            raise CorpusError(
                f"{txt}:{number}: found {line!r}, expected [start - end], utterance, emotion, "
                "[valence, activation, dominance], separated by tabs"
            )
        path = wavs / f"{match['name']}.wav"
        if not path.is_file():
            raise CorpusError(f"{txt}:{number}: expected the audio file {path}, found none")
        utterances.append(
            Utterance(
                path=path,
                corpus="iemocap",
                speaker=match["session"] + match["gender"],
                label=labels.get(match["emotion"]),
                duration_s=_file_duration_s(path),
                gender=_IEMOCAP_GENDERS[match["gender"]],
                emotion=match["emotion"],
                language="en",
            )
        )
    return utterances


def _file_duration_s(path: Path) -> float:
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise CorpusError(f"{path}: cannot be read as audio: {error.error_string}") from error
    return float(info.frames / info.samplerate)


def read_samples(utterance: Utterance) -> Samples:
    """An utterance's samples, (n,) float32 at 16 kHz, full scale 1.0.

    Several channels become their mean. Another rate goes through the resampler that serving uses.

    Raises:
        CorpusError: the file is missing or is not audio, has a rate that the resampler does
            not take, holds less than the utterance should last, or has a sample that is not a
            finite number.
    """
    path = utterance.path
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            start = round((utterance.start_s or 0.0) * rate)
            stop = file.frames if utterance.end_s is None else round(utterance.end_s * rate)
            if not 0 <= start < stop <= file.frames:
                raise CorpusError(
                    f"{path}: expected samples {start} to {stop}, found {file.frames} in the file"
                )
            file.seek(start)
            channels = file.read(stop - start, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise CorpusError(f"{path}: cannot be read as audio: {error.error_string}") from error
    found_s = len(channels) / rate
    if len(channels) < stop - start or found_s < utterance.duration_s - DURATION_TOLERANCE_S:
        raise CorpusError(
            f"{path}: found {found_s:.3f} s of audio, expected {utterance.duration_s:.3f} s: "
            "the file is cut short"
        )
    samples = np.ascontiguousarray(channels.mean(axis=1, dtype=np.float32))
    if not np.isfinite(samples).all():
        raise CorpusError(f"{path}: found a sample that is not finite, expected -1 to 1")
    if rate == SAMPLE_RATE:
        return samples
    try:
        resampler = Resampler(rate, SAMPLE_RATE)
    except AudioError as error:
        raise CorpusError(f"{path}: {error}") from error
    return np.concatenate([resampler.receive(samples), resampler.flush()])
