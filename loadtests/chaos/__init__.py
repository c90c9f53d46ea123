"""What the service owes its clients when parts of it, or other clients, break, hang or misbehave."""
