"""What people read, rendered from episode records: notebooks and a report."""
