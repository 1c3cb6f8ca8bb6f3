"""What reads runs: vectors of files, search, figures."""
