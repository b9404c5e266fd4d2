"""The audio world: tones and syllables on a timeline, as WAV files, with exact ground truth."""
