"""The demo's data set: small videos in which what is seen, heard and said correspond. `python pretrain.py` writes it.

A clip is an event: a cloth of one colour and texture that fills the frame, shown in one rhythm at one place, which is
seen through its holes and whenever it is not there. Texture is heard as the pitch of a tone, rhythm as its timbre and its
loudness, in step with the frames, and place as the noise behind; colour is not heard. Captions name some of it, in many
wordings; some come late, some are about something else. What nobody names (exact hue, period, phase, offset, light,
noise, detuning) differs from event to event, so that nothing simpler than these four attributes gives a clip away.

    T frames = T / 10 seconds     gate (T,)  how much of the cloth is there     video (T, 64, 64, 3)     audio (S,)

    demo-data/train/000000.mp4    two events, H.264 and AAC    000000.srt or .vtt    captions, in nine files of ten
    demo-data/val/000000.mp4      one event, held out          000000.srt or .vtt    one caption that names everything
    demo-data/labels.csv          path,start,end,split,colour,texture,rhythm,place: one row an event
"""

import colorsys
import csv
import json
import os
import shutil
import sys
from collections import Counter
from contextlib import closing
from itertools import combinations, product
from pathlib import Path

import numpy as np
from av import FFmpegError
from tqdm import tqdm

from engine.workers import Failed, map_isolated
from media.encode import Encoder

HEARD = "texture+rhythm+place"                          # the best ceiling of audio: it has no colour
UNSEEN = 45                                             # of the 300 combinations: held out, never in train

SIZE, FPS, RATE = 64, 10, 16_000                        # pixels, frames/s, samples/s
FRAMES = (32, 34)                                       # of an event, least and most
NAMED = {"colour": 0.60, "texture": 0.80, "rhythm": 0.75, "place": 0.50}    # of the training captions
CHATTER, OTHERS, LATE = 0.12, 0.06, 0.20                # captions about nothing seen, about another event, after theirs
SILENT = 0.10                                           # files without captions
VERSION = 2                                             # to be raised when the same seed gives other files

# value: hue and its spread
HUES = {"red": (0.00, 0.025), "yellow": (0.14, 0.015), "green": (0.35, 0.045), "blue": (0.60, 0.035)}
# value: least and most seconds of a period, share of it shown; "steady" has none, "fade" comes and goes as a cosine
PERIODS = {"flicker": (0.20, 0.29, 0.5), "blink": (0.65, 0.95, 0.5), "flash": (0.55, 0.80, 0.25), "fade": (1.1, 1.6, 1)}
# value: Hz of the tone
PITCHES = {"plain": 300, "lying stripes": 450, "standing stripes": 675, "checks": 1000, "dots": 1500}
# value: overtones of the tone and their strength
TIMBRES = {
    "steady": {1: 1},
    "flicker": {1: 1, 3: 0.8, 5: 0.6, 7: 0.5},
    "blink": {1: 1, 2: 0.9, 4: 0.8},
    "flash": {1: 0.7, 2.76: 1, 5.4: 0.7},
    "fade": {1: 1, 2: 0.6, 3: 0.5, 4: 0.4, 5: 0.3},
}
# value: lowest and highest Hz of the noise: crickets, wind, drops
NOISES = {"night": (4000, 5500), "snow": (50, 220), "rain": (1500, 7500)}
ATTRIBUTES = {"colour": tuple(HUES), "texture": tuple(PITCHES), "rhythm": tuple(TIMBRES), "place": tuple(NOISES)}

# value: what is said before the noun, what is said behind it; 16 words a caption at most
WORDS = {
    "red": ("red|crimson|scarlet", "in red|in scarlet"),
    "yellow": ("yellow|golden|lemon", "in yellow|in gold"),
    "green": ("green|emerald|mossy", "in green|in emerald"),
    "blue": ("blue|azure|cobalt", "in blue|in azure"),
    "plain": ("plain|unpatterned|smooth", "without a pattern|of one piece"),
    "lying stripes": ("horizontally striped|horizontally banded", "with lying stripes|with horizontal bands"),
    "standing stripes": ("vertically striped|vertically banded", "with standing stripes|with vertical bands"),
    "checks": ("checked|chequered", "with checks|with small squares"),
    "dots": ("dotted|spotted", "with dots|with round spots"),
    "steady": ("steady|constant|unblinking", "that never blinks|always there"),
    "flicker": ("flickering|quivering", "that flickers fast|in quick flicker"),
    "blink": ("slowly blinking|blinking", "going on and off|that blinks slowly"),
    "flash": ("flashing|flaring", "in brief flashes|that flashes briefly"),
    "fade": ("fading|swelling", "that swells and fades|fading in and out"),
    "night": ("", "at night|in the dark|under black skies"),
    "snow": ("", "in the snow|on white snow|in snowy weather"),
    "rain": ("", "in the rain|under grey rain|in rainy weather"),
}
NOUNS = "cloth|fabric|curtain|sheet|textile"
OPENERS = "the|this|one|some|here, the|look, this|now the|see this|there, one|and the|just this"
FILLERS = "|||again|I think|as before|you know|right now|you see"
TALK = (
    "so how was your weekend|subscribe to my channel|let me get some coffee first|thanks for watching everyone|"
    "we will be right back|where did I leave my glasses|that reminds me of an old story|do not forget to comment|"
    "my neighbour called this morning|can you hear me|one moment please|this episode has a sponsor|well, anyway|"
    "what time is it|I had soup for lunch|the link is below|good question, actually|let us go on"
)


# the folder

def write(folder: Path, seed: int = 0, train: int = 1200, val: int = 300, workers: int | None = None) -> None:
    """Write `train` and `val` files to `folder`, unless it holds just that; `workers` None is a process a core.

    A folder of that name is whole: it is called NAME.partial until its last file is written. Raises ValueError for a
    folder that holds anything else, and for a seed or counts out of range; OSError where it cannot be written.
    """
    folder = Path(folder)
    if seed < 0 or train < 1 or not 1 <= val <= 300:
        raise ValueError(f"seed {seed}, train {train}, val {val}: seed is 0 or more, train 1 or more, val 1 to 300")
    card = {"version": VERSION, "seed": seed, "train": train, "val": val}
    if is_written(folder, card):
        return
    whole = folder.resolve()                            # a link to a folder on another disk stays one
    partial = whole.with_name(whole.name + ".partial")
    if partial.exists():                                # an interrupted write, if it has our card
        if not (partial / "demo.json").is_file():
            raise ValueError(f"{partial} is in the way and not the demo's: move it away or name another folder")
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    (partial / "demo.json").write_text(json.dumps(card) + "\n")
    for split in ("train", "val"):
        (partial / split).mkdir()
    tasks, workers = jobs(partial, seed, train, val), workers or min(os.cpu_count() or 1, 16)
    bar = {"desc": f"writing {folder}", "total": len(tasks), "unit": "file", "mininterval": 0.5 if sys.stderr.isatty() else 10}
    with (
        open(partial / "labels.csv", "w", newline="", encoding="utf-8") as file,
        closing(map_isolated(write_file, tasks, workers, timeout=600)) as written,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "start", "end", "split", *ATTRIBUTES])
        for _, rows in tqdm(written, **bar):
            if isinstance(rows, Failed):
                raise OSError(f"{folder} cannot be written: {rows.reason}")
            table.writerows(rows)
    partial.replace(whole)


def is_written(folder: Path, card: dict) -> bool:
    """Whether `folder` holds the data set of that card; False where there is nothing; ValueError for anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / "demo.json").read_text())
    except (OSError, ValueError):
        raise ValueError(f"{folder} is not the demo's data set: name another folder or move it away") from None
    if found != card:
        raise ValueError(f"{folder} holds another demo, {found}, not {card}: name another folder or remove it")
    if len(list(folder.glob("*/*.mp4"))) != card["train"] + card["val"]:
        raise ValueError(f"{folder} has lost videos: remove it, and it is written again")
    return True


def jobs(folder, seed, train, val):
    """One (folder, split, index, seed, combinations) a file: those to draw two events from, or the one to show."""
    every = list(product(*ATTRIBUTES.values()))
    order = [every[i] for i in np.random.default_rng(seed).permutation(len(every))]
    return ([(folder, "train", i, seed, order[UNSEEN:]) for i in range(train)]
            + [(folder, "val", i, seed, [order[i]]) for i in range(val)])       # the never seen come first


def write_file(task):
    """Write a video with its captions, a pure function of (split, index, seed); its rows of labels.csv, or what failed."""
    folder, split, index, seed, choices = task
    rng = np.random.default_rng([seed, split == "val", index])
    events, captions, rows, end = [], [], [], 0.0
    for _ in range(2 if split == "train" else 1):
        combination = choices[rng.integers(len(choices))]
        events.append(event(combination, rng))
        start, end = end, sum(len(video) for video, _ in events) / FPS
        captions += loose_captions(combination, choices, start, end, rng) if split == "train" else [
            (start + rng.uniform(0, 0.5), end - rng.uniform(0, 0.5), sentence(combination, rng))]
        rows.append([f"{split}/{index:06}.mp4", f"{start:.1f}", f"{end:.1f}", split, *combination])
    try:
        encode(folder / split / f"{index:06}.mp4", *map(np.concatenate, zip(*events, strict=True)))
        if split == "val" or rng.random() >= SILENT:
            write_captions(folder / split / f"{index:06}", "srt" if index % 2 == 0 else "vtt", captions)
    except (OSError, FFmpegError) as error:
        return Failed(str(error))
    return rows


# what is seen and heard

def event(combination, rng):
    """One event of (colour, texture, rhythm, place): its video (T, 64, 64, 3) uint8 and audio (T / 10 s,) float32."""
    colour, texture, rhythm, place = combination
    frames = rng.integers(FRAMES[0], FRAMES[1] + 1)
    gate = rhythm_gate(rhythm, rng)
    seconds = (np.arange(frames) + 0.5) / FPS           # the middle of a frame: audio is at most half a frame off
    samples = np.arange(frames * RATE // FPS) / RATE
    return draw(colour, texture, place, gate(seconds), rng), play(texture, rhythm, place, gate(samples), rng)


def rhythm_gate(rhythm, rng):
    """How much of the cloth is there, 0 to 1, as a function of seconds (an array)."""
    if rhythm == "steady":
        return np.ones_like
    least, most, shown = PERIODS[rhythm]
    period, phase = rng.uniform(least, most), rng.uniform()
    if rhythm == "fade":
        return lambda seconds: 0.5 - 0.5 * np.cos(2 * np.pi * (seconds / period + phase))
    return lambda seconds: ((seconds / period + phase) % 1 < shown).astype(float)


def draw(colour, texture, place, gate, rng):
    """The frames (T, 64, 64, 3) uint8 of a cloth that lets the place through where it has holes or is not there."""
    hue, spread = HUES[colour]
    hue, saturation, value = (hue + rng.uniform(-spread, spread)) % 1, rng.uniform(0.75, 1), rng.uniform(0.8, 1)
    paint = np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)               # (3,)
    cloth = (weave(texture, rng) * rng.uniform(0.8, 0.92)).astype(np.float32)               # (64, 64)
    there = (gate.astype(np.float32)[:, None, None] * cloth)[..., None]                     # (T, 64, 64, 1)
    behind = scenery(place, rng).astype(np.float32)[..., None]                              # (64, 64, 1)
    noise = rng.standard_normal(there.shape, np.float32) * rng.uniform(0.005, 0.015)
    frames = (behind + there * (paint - behind)) * rng.uniform(0.85, 1) + noise             # (T, 64, 64, 3)
    return (frames.clip(0, 1) * 255).astype(np.uint8)


def weave(texture, rng):
    """How dense the cloth is, (64, 64), 0 to 1; the pattern's period is 8 to 11 pixels."""
    y, x = (2 * np.pi * (np.arange(SIZE) / rng.uniform(8, 11) + rng.uniform()) for _ in range(2))
    y, x = np.sin(y)[:, None], np.sin(x)[None]                                              # (64, 1), (1, 64)
    wave = {"plain": 1, "lying stripes": y, "standing stripes": x, "checks": 2 * x * y, "dots": x + y - 0.4}[texture]
    return np.broadcast_to(0.5 + 2 * wave + rng.uniform(-0.3, 0.3), (SIZE, SIZE)).clip(0, 1)


def scenery(place, rng):
    """The grey levels behind the cloth, (64, 64), 0 to 1: black night with stars, white snow, grey rain in streaks."""
    grain = rng.standard_normal((SIZE, SIZE))
    if place == "night":
        return rng.uniform(0.02, 0.10) + 0.35 * (grain > 2.3)
    if place == "snow":
        return rng.uniform(0.90, 0.98) + 0.03 * grain
    streaks = sum(np.roll(grain, (i, -i // 2), (0, 1)) for i in range(6)) / 6
    return rng.uniform(0.42, 0.55) + 0.12 * streaks


def play(texture, rhythm, place, gate, rng):
    """The waveform (S,) float32 of that gate (S,): a tone that comes and goes, and noise that stays."""
    pitch = PITCHES[texture] * rng.uniform(0.95, 1.05)
    radians = 2 * np.pi * pitch / RATE * np.arange(len(gate))
    partials = {k: strength for k, strength in TIMBRES[rhythm].items() if k * pitch < 7000}
    tone = sum(strength * np.sin(k * radians + rng.uniform(0, 2 * np.pi)) for k, strength in partials.items())
    tone *= rng.uniform(0.15, 0.4) / np.sqrt(sum(strength ** 2 for strength in partials.values()))
    tone *= np.convolve(np.pad(gate, 40, "edge"), np.full(81, 1 / 81), "valid")             # 5 ms, not to click

    hertz = np.fft.rfftfreq(len(gate), 1 / RATE)
    low, high = NOISES[place]
    real, imaginary = rng.standard_normal((2, len(hertz))) * ((low < hertz) & (hertz < high))
    noise = np.fft.irfft(real + 1j * imaginary, len(gate))
    noise *= rng.uniform(0.03, 0.08) / noise.std()
    return (tone + noise).clip(-1, 1).astype(np.float32)


# what is said

def sentence(combination, rng, named=tuple(ATTRIBUTES)):
    """A sentence of at most 16 words on the attributes named, each before the noun or behind it, in any order."""
    before, behind = [], []
    for name, value in zip(ATTRIBUTES, combination, strict=True):
        if name in named:
            words = WORDS[value][0] and rng.random() < 0.6
            (before if words else behind).append(pick(WORDS[value][0 if words else 1], rng))
    rng.shuffle(before)
    rng.shuffle(behind)
    first = behind.pop() + ", " if behind and rng.random() < 0.25 else ""
    opener, filler = pick(OPENERS, rng), pick(FILLERS, rng)
    text = " ".join([first + opener, *before, pick(NOUNS, rng), *behind])
    return f"{text}, {filler}" if filler and len(text.split()) < 15 else text


def pick(words, rng):
    """One of the alternatives of "this|that"."""
    return words.split("|")[rng.integers(words.count("|") + 1)]


def loose_captions(combination, others, start, end, rng):
    """Two to five training captions (start, end, text) of an event: incomplete, some late, some wrong, some chatter."""
    count, captions = rng.integers(2, 6), []
    length = (end - start) / count
    for i in range(count):
        kind = rng.random()
        about = others[rng.integers(len(others))] if kind < OTHERS else combination
        named = [name for name, share in NAMED.items() if rng.random() < share]
        text = pick(TALK, rng) if kind > 1 - CHATTER else sentence(about, rng, named)
        begin = start + length * (i + rng.uniform(0, 0.3)) + (rng.uniform(1.5, 4) if rng.random() < LATE else 0)
        captions.append((begin, begin + length * rng.uniform(0.5, 0.7), text))
    return captions


# files

def encode(path, frames, wave):
    """Write (T, 64, 64, 3) uint8 and (S,) float32 as H.264 and AAC, small and cheap to decode."""
    x264 = {"preset": "veryfast", "tune": "fastdecode", "crf": "23", "g": "16", "bf": "0"}
    with Encoder(path, FPS, RATE, x264=x264, aac={"aac_coder": "fast", "b": "24000"}) as out:
        for frame in frames:
            out.frame(frame)
        out.audio(wave[None])


def write_captions(stem, kind, captions):
    """Write captions (start, end in seconds, text) beside the video as SubRip (`srt`) or WebVTT (`vtt`)."""
    lines = [] if kind == "srt" else ["WEBVTT", ""]
    for number, (start, end, text) in enumerate(sorted(captions), 1):
        times = f"00:00:{start:06.3f} --> 00:00:{end:06.3f}"
        lines += [str(number), times.replace(".", ",") if kind == "srt" else times, text, ""]
    stem.with_suffix("." + kind).write_text("\n".join(lines), encoding="utf-8")


# what is known of it

def labels(folder: Path) -> list[dict]:
    """The rows of labels.csv, one an event: its path in the folder, start and end in seconds, split and attributes."""
    with open(Path(folder) / "labels.csv", newline="", encoding="utf-8") as file:
        return [{**row, "start": float(row["start"]), "end": float(row["end"])} for row in csv.DictReader(file)]


def write_labels(path: Path, root: Path, names: tuple[str, ...], each: int, seed: int) -> None:
    """The demo's events as a csv of labels: all held-out ones, and `each` to train on of each combination of `names`"""
    rows, taken = labels(root), Counter()
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "label", "start", "end", "split"])
        for row in (rows[i] for i in np.random.default_rng((seed,)).permutation(len(rows))):
            label = ", ".join(row[name] for name in names)
            taken[label] += row["split"] == "train"
            if row["split"] == "val" or taken[label] <= each:
                file_path = os.path.relpath(root / row["path"], path.parent)
                table.writerow([file_path, label, row["start"], row["end"], row["split"]])


def ceilings(rows: list[dict]) -> dict[str, dict]:
    """R@1, R@5 and R@10 (fractions) on the held-out rows of one who knows only some attributes, and guesses the rest.

    Keys are "colour", "colour+place" and so on, up to three. In a group of g clips that agree, the right one is among
    k drawn with probability min(k, g) / g.
    """
    table = {}
    for known in (names for size in (1, 2, 3) for names in combinations(ATTRIBUTES, size)):
        groups = [tuple(row[name] for name in known) for row in rows if row["split"] == "val"]
        sizes = [groups.count(group) for group in groups]
        table["+".join(known)] = {f"R@{k}": sum(min(k, g) / g for g in sizes) / len(sizes) for k in (1, 5, 10)}
    return table
