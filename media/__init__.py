"""One media file to frames, waveform and captions; imports nothing of ours."""
