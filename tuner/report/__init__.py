"""What tuning a target brought, as one HTML page that needs nothing else."""
