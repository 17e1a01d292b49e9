"""Images on disk, in archives, tables or arrays -> a catalog with labels and a split -> decoded pixels -> batches."""
