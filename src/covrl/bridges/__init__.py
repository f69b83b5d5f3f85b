"""Our likelihood rewards in the trainers of others; each bridge needs the trainer only where it is called from it."""
