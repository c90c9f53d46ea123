"""What breaks, is killed, hangs or misbehaves around the service, and what the service then owes everybody else."""
