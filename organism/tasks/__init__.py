"""What a genome is meta-trained on: tasks draw lifetimes and say how well they were lived."""
