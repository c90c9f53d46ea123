"""What makes files of this repository: dashboards, pictures, the API reference."""
