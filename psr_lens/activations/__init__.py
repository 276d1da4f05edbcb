"""What an instruction changes inside the model: teacher-forced passes in both contexts, capture, statistics, stores on disk."""
