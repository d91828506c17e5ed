"""The batch entrance: tables and files through the plane, part by part, every row exactly once."""
