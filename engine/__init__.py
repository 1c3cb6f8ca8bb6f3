"""What any training needs: processes, run folder and checkpoints, sampling, loading, workers, errors."""
