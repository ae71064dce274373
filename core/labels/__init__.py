"""What a table of labels says: its columns, the target that a head learns, and which rows are for which side."""
