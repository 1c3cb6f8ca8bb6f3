"""Videos to clips, beside what people would use instead: `python -m bench data` (a clip is that of Section 4.1).

All contenders get the same videos, written here, the same times and the same parts, one after the other in each round. Counted
are seconds of CPU, threads of every library included, so the figures are of one core, and of how many does not matter.
"""

import argparse
import contextlib
import importlib.util
import io
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F

import data
from bench import index, table
from engine import loading
from engine.arguments import count
from engine.processes import Processes
from engine.sampling import Sampler
from media import Media
from media.encode import Encoder
from sources.index import Index, Row, write
from tools import embed, show
from vatt import tokenize

SECONDS, LONG, FPS = 10, 60, 30
VIDEOS = {  # name: width, height, options of x264: a key frame every five seconds, as on the web
    "340x256": (340, 256, {"g": "150"}),
    "340x256 without B-frames": (340, 256, {"g": "150", "bf": "0"}),
    "640x360": (640, 360, {"g": "150"}),
    "1280x720": (1280, 720, {"g": "150"}),
}
SAME = 12.0  # mean difference of two frames, of 255, above which they are not of the same time


def flags(commands, common: argparse.ArgumentParser) -> None:
    """Add the command line of `data`."""
    c = commands.add_parser("data", parents=[common], help="videos to clips, a core, beside other libraries; or a huge index")
    c.set_defaults(run=run)
    c.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), help="one clip beside other libraries, "
                   "shards beside videos, the loader with its workers, a search beside one pass (default: all)")
    c.add_argument("--rounds", type=count, default=15, help="timed clips of each video (default: %(default)s)")
    c.add_argument("--workers", type=count, default=os.cpu_count(), help="processes of the loader (default: one a core)")
    c.add_argument("--folder", type=Path, help="holds the videos or the index meanwhile (default: the system's)")
    c.add_argument("--index", type=count, nargs="?", const=1_000_000, metavar="N", help="instead: what a made-up list of N "
                   "clips costs (default: a million; 120 bytes each on the disk)")


def run(p: argparse.ArgumentParser, args: argparse.Namespace, _device: str) -> list[dict]:
    """`python -m bench data`: prints a table a part, returns the rows"""
    if args.folder and not args.folder.is_dir():
        p.error(f"--folder: there is no folder {args.folder}")
    if args.index is not None:
        return index.measure(args.index, folder=args.folder)
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        videos = {title: video(Path(folder, title, "a.mp4"), *how) for title, how in VIDEOS.items()}
        torch.set_num_threads(1)
        for part in args.parts:
            found = PARTS[part](videos, data.ClipSpec(), args.rounds, args.workers)
            print("\n".join(["", f"{part}: {PARTS[part].__doc__}", report(found)]), flush=True)
            rows += found
    return rows


def video(path: Path, width: int, height: int, x264: dict[str, str], seconds: int = SECONDS) -> Path:
    """Writes H.264 and AAC: something moves before something else that moves, natural textures, the noise of a camera"""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    behind, before = texture(rng, 2 * width, 2 * height), texture(rng, width, height)
    noise, side = rng.normal(0, 2, (2 * height, 2 * width, 1)).round().astype(np.int16), height // 3
    with Encoder(path, FPS, 44100, layout="stereo", x264=x264) as out:
        for i in range(seconds * FPS):
            x, y, u, v = (int((0.5 + 0.5 * np.sin(speed * i / FPS)) * room) for speed, room in
                          ((0.7, width), (0.5, height), (1.9, width - side), (1.3, height - side)))
            frame = behind[y:y + height, x:x + width].copy()
            frame[v:v + side, u:u + side] = before[:side, :side]
            x, y = rng.integers(width), rng.integers(height)
            out.frame((frame + noise[y:y + height, x:x + width]).clip(0, 255).astype(np.uint8))
        out.audio(0.3 * np.sin(0.06 * np.arange(seconds * 44100)) + rng.normal(0, 0.02, (2, seconds * 44100)))
    return path


def texture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Random, of the spectrum that nature has: (height, width, 3) int16 in 0..255"""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    layers = [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / frequency**1.2, (height, width))
              for _ in range(3)]
    grey = layers[0] / layers[0].std()
    return np.stack([128 + 45 * grey + 15 * layer / layer.std() for layer in layers], -1).clip(0, 255).astype(np.int16)


# ---------------------------------------------------------------------------------------------------------------------
# Contenders: (path, start in seconds, box, spec) -> (frames, waveform), each by one thread

def ours(path: str, start: float, box: tuple, s: data.ClipSpec) -> tuple:
    """A clip as the data set of training reads it"""
    with Media(path) as media:
        return media.video(start, s.frames, s.fps, lambda *_: box, (s.size, s.size)), media.audio(start, s.samples, s.rate)


def floor(path: str, start: float, box: tuple, s: data.ClipSpec) -> None:
    """The same packets decoded, and nothing done with them"""
    with av.open(path) as container:
        for _ in decoded(container, "video", start, start + (s.frames - 1) / s.fps):
            pass
        for _ in decoded(container, "audio", start - 0.05, start + s.samples / s.rate):
            pass


def decoded(container, kind: str, first: float, last: float):
    """(seconds, frame) from the key frame before `first` to the first one from `last` on"""
    stream = container.streams.best(kind)
    stream.codec_context.thread_count, unit = 1, float(stream.time_base)
    container.seek(max(0, int(first / unit)), stream=stream)
    for frame in container.decode(stream):
        yield frame.pts * unit, frame
        if frame.pts * unit >= last - 1e-6:
            return


def pyav(path: str, start: float, box: tuple, s: data.ClipSpec) -> tuple:
    """PyAV as its documentation shows it: `to_ndarray` of the frames that are shown"""
    with av.open(path) as container:
        times, shown, frames = [start + i / s.fps + 1e-6 for i in range(s.frames)], None, []
        for at, frame in decoded(container, "video", start, times[-1] + 1 / FPS):
            while times and shown is not None and times[0] < at:
                frames.append(shown.to_ndarray(format="rgb24", threads=1))
                times.pop(0)
            shown = frame
        frames += [shown.to_ndarray(format="rgb24", threads=1)] * len(times)
        return cut(torch.from_numpy(np.stack(frames)), box, s), waveform(container, start, s)


def waveform(container, start: float, s: data.ClipSpec) -> np.ndarray:
    """The waveform of the interval by PyAV's resampler: (samples,) float32"""
    resampler, parts, first = av.AudioResampler("flt", "mono", s.rate), [], None
    for at, block in decoded(container, "audio", start - 0.05, start + s.samples / s.rate):
        first = at if first is None else first
        parts += [part.to_ndarray()[0] for part in resampler.resample(block)]
    silent = np.zeros(max(0, round((first - start) * s.rate)), np.float32)  # FFmpeg 9 gives nothing of the first block
    wave = np.concatenate([silent, *parts])[max(0, round((start - first) * s.rate)):][:s.samples]
    return np.pad(wave, (0, s.samples - len(wave)))


def torchcodec(path: str, start: float, box: tuple, s: data.ClipSpec) -> tuple:
    """torchcodec"""
    from torchcodec.decoders import AudioDecoder, VideoDecoder

    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate")
    frames = decoder.get_frames_played_at([start + i / s.fps + 1e-4 for i in range(s.frames)]).data
    audio = AudioDecoder(path, sample_rate=s.rate, num_channels=1)
    return cut(frames, box, s), audio.get_samples_played_in_range(start, start + s.samples / s.rate).data[0].numpy()


def decord(path: str, start: float, box: tuple, s: data.ClipSpec) -> tuple:
    """decord or eva-decord; its AudioReader decodes the audio of the whole file"""
    from decord import AudioReader, VideoReader, cpu

    reader = VideoReader(path, ctx=cpu(0), num_threads=1)
    frames = reader.get_batch(numbers(start, reader.get_avg_fps(), s)).asnumpy()
    first = round(start * s.rate)
    wave = AudioReader(path, ctx=cpu(0), sample_rate=s.rate, mono=True)[first:first + s.samples].asnumpy()[0]
    return cut(torch.from_numpy(frames), box, s), wave


def opencv(path: str, start: float, box: tuple, s: data.ClipSpec) -> tuple:
    """OpenCV; it has no audio, which is PyAV's"""
    import cv2

    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    wanted, frames = numbers(start, capture.get(cv2.CAP_PROP_FPS), s), []
    capture.set(cv2.CAP_PROP_POS_FRAMES, wanted[0])
    for i in range(wanted[0], wanted[-1] + 1):
        capture.grab()
        if i in wanted:
            frame = capture.retrieve()[1]
            left, top, right, bottom = pixels(box, frame.shape[1], frame.shape[0])
            small = cv2.resize(frame[top:bottom, left:right], (s.size, s.size), interpolation=cv2.INTER_AREA)
            frames.append(cv2.cvtColor(small, cv2.COLOR_BGR2RGB))
    capture.release()
    with av.open(path) as container:
        return np.stack(frames), waveform(container, start, s)


PEERS = {"torchcodec": ("torchcodec", torchcodec), "decord": ("decord", decord), "opencv": ("cv2", opencv),
         "pyav": ("av", pyav)}  # what to import


def numbers(start: float, fps: float, s: data.ClipSpec) -> list[int]:
    """The numbers of the frames that are shown"""
    return [int((start + i / s.fps) * fps + 1e-3) for i in range(s.frames)]


def pixels(box: tuple, width: int, height: int) -> tuple[int, int, int, int]:
    """A box in pixels"""
    return int(box[0] * width), int(box[1] * height), round(box[2] * width), round(box[3] * height)


def cut(frames: torch.Tensor, box: tuple, s: data.ClipSpec) -> np.ndarray:
    """(T, H, W, 3) uint8 -> cut and resized, bilinear with antialiasing: the fastest way that torch has"""
    left, top, right, bottom = pixels(box, frames.shape[2], frames.shape[1])
    part = frames[:, top:bottom, left:right].permute(0, 3, 1, 2)
    return F.interpolate(part, (s.size, s.size), mode="bilinear", antialias=True).permute(0, 2, 3, 1).numpy()


# ---------------------------------------------------------------------------------------------------------------------
# The parts: (videos, spec, rounds, workers) -> rows

def clips(videos: dict[str, Path], s: data.ClipSpec, rounds: int, _workers: int) -> list[dict]:
    """32 frames at 10 fps, a random part of them at 224 x 224, and their waveform, of videos of 10 s"""
    there = {name: contender for name, (module, contender) in PEERS.items() if importlib.util.find_spec(module)}
    if missing := sorted(PEERS.keys() - there):
        print(f"left out, since not installed: {', '.join(missing)}")
    rows, contenders = [], {"ours": ours, "floor": floor, **there}
    for title, path in videos.items():
        with Media(path) as media:
            width, height, last = media.width, media.height, media.duration - s.seconds
        rng = np.random.default_rng(0)
        jobs = [(str(path), int(rng.integers(10 * last + 1)) / 10, data.random_box(rng, width, height, s.area), s)
                for _ in range(rounds + 1)]
        rows += compare("clip", title, {name: lambda i, c=c, jobs=jobs: c(*jobs[i]) for name, c in contenders.items()}, rounds)
    return rows


def packed(videos: dict[str, Path], s: data.ClipSpec, rounds: int, _workers: int) -> list[dict]:
    """the clips of training, of videos and of the shards they are packed into"""
    rows = []
    for title, path in videos.items():
        shards = path.parent.with_name(f"shards of {title}")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            show.main(["pack", str(path.parent), str(shards), "--workers", "1"])
        both = {"shards": training(Index(shards / "index"), s, 1), "videos": training(listed(path), s, 1)}
        rows += compare("packed", title, {name: lambda i, d=d: d[i, 0] for name, d in both.items()}, rounds)
    return rows


def loader(videos: dict[str, Path], s: data.ClipSpec, rounds: int, workers: int) -> list[dict]:
    """the loader of training, with its workers and without, batches of 8"""
    batch, (title, path) = 8, next(iter(videos.items()))
    dataset, times = training(listed(path), s, batch), {workers: [], 0: []}
    for turn in range(3):
        for n, seconds in times.items():
            first, began = turn * rounds, (time.perf_counter(), cpu())
            for _ in loading.train_batches(dataset, batch, Processes(solo=True), first, first + rounds, n):
                pass
            seconds.append(np.subtract((time.perf_counter(), cpu()), began) / (batch * rounds))
    with_workers, alone = (row("loader", title, f"{n} workers" if n else "one process", np.array(seconds)[:, 1])
                           | {"clips_per_s": 1 / np.median(seconds, 0)[0].item()} for n, seconds in times.items())
    with_workers["vs_one_process"] = alone["cpu_s"] / with_workers["cpu_s"]
    # By the clock, with a core for each worker; where cores share their parts, two at once take more CPU for the same work.
    with_workers["a_worker_vs_one_process"] = with_workers["clips_per_s"] / workers / alone["clips_per_s"]
    return [with_workers, alone]


def searched(videos: dict[str, Path], s: data.ClipSpec, rounds: int, _workers: int) -> list[dict]:
    """all moments of a video of a minute, 640x360, and one pass that only decodes it; "a clip" is the whole video"""
    rows, folder = [], next(iter(videos.values())).parent.with_name("long")
    for suffix in ("mp4", "mkv", "ts", "flv", "avi"):
        path = video(folder / f"a.{suffix}", 640, 360, {"g": "150", "preset": "veryfast"}, LONG)
        runs = {"moments": lambda _, path=path: moments(path, s), "one_pass": lambda _, path=path: decode_all(path)}
        rows += compare("search", suffix, runs, math.ceil(rounds / 5))
    return rows


PARTS = {"clip": clips, "packed": packed, "loader": loader, "search": searched}


def moments(path: Path, s: data.ClipSpec) -> int:
    """Reads all moments of a video, as `embed` does; returns how many there are"""
    rows = embed.moments(path.parent, [path.name], s.seconds, s.fps, [])
    with tempfile.TemporaryDirectory() as folder:
        clips = data.TestDataset([data.Source.to_test(write(Path(folder) / "index", path.parent, rows))], s)
        return sum(views is not None for views, _ in embed.Moments(clips, 32))


def decode_all(path: Path) -> None:
    """Decodes all frames of a video by one thread, and does nothing with them"""
    with av.open(str(path)) as container:
        for _ in decoded(container, "video", 0.0, math.inf):
            pass


def listed(path: Path) -> Index:
    """A list that names a video eight times"""
    folder = path.with_name("list")
    return Index(folder) if folder.exists() else write(folder, path.parent, [Row(path.name, 0.0, math.inf, [])] * 8)


def training(rows: Index, s: data.ClipSpec, batch: int) -> data.TrainDataset:
    """The clips of training from a list"""
    sampler = Sampler([len(rows)], [1.0], batch, 0)
    return data.TrainDataset([data.Source(rows, np.zeros(0, int))], sampler, s, vocabulary=tokenize.Vocabulary([]))


def compare(part: str, title: str, runs: dict[str, Callable], rounds: int) -> list[dict]:
    """Rows of calls run(round) that take turns, another one first each round, after one round to warm up.

    One that raises, but the first, is left out from then on with a note; noted are also frames unlike those of the first.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        got, order = {}, list(taken)
        for name in order[i % len(order):] + order[:i % len(order)]:
            began = time.process_time()
            try:
                got[name] = runs[name](i)
                taken[name] += [time.process_time() - began] * (i > 0)
            except Exception as error:
                if name == order[0]:
                    raise
                print(f"{name} cannot read {title}: {first_line(error)}")
                del taken[name]
        for name, clip in got.items() if part == "clip" else ():
            if clip and (far := np.abs(clip[0].astype(np.int16) - got[order[0]][0]).mean((1, 2, 3)).max()) > SAME:
                print(f"{name} gives other frames of {title}, round {i}: they differ by {far:.0f} of 255")
    first, *others = taken
    rows = [row(part, title, name, times) for name, times in taken.items()]
    rows[0] |= {f"vs_{name}": float(np.median(np.divide(taken[name], taken[first]))) for name in others}
    return rows


def cpu() -> float:
    """Seconds of CPU of this process and of those it has had"""
    who = (resource.getrusage(which) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in who)


def row(part: str, title: str, name: str, times: list[float]) -> dict:
    """One contender on one video"""
    seconds = float(np.median(times))
    return {"part": part, "video": title, "name": name, "cpu_s": seconds, "clips_per_s_core": 1 / seconds}


def first_line(error: Exception) -> str:
    """What an error says, short"""
    return (str(error).splitlines() or [type(error).__name__])[0]


def report(rows: list[dict]) -> str:
    """The rows, a table for people"""
    cells, first = [], rows[0]
    for r in rows:
        first = r if r["video"] != first["video"] or r is first else first
        ratio = first.get(f"vs_{r['name'].replace(' ', '_')}")
        clock = f"{r['clips_per_s']:.1f} by the clock" if "clips_per_s" in r else ""
        share = f", {r['a_worker_vs_one_process']:.2f} of one process a worker" if "a_worker_vs_one_process" in r else ""
        cells.append([r["video"] if r is first else "", r["name"], f"{1e3 * r['cpu_s']:.1f} ms", f"{r['clips_per_s_core']:.1f}",
                      f"{first['name']}: {ratio:.2f} times as fast" if ratio else "", clock + share])
    return table(["", "", "CPU a clip", "clips/s a core", "", ""], cells)
