"""What policies are worth: the bench on held-out tasks, its tuned baseline, and the demo."""
