"""What an instruction changes inside the model: paired teacher-forced passes, capture, statistics, stores on disk."""
