"""Data sets on disk to rows: layouts, labels, the index, shards, the demo."""
