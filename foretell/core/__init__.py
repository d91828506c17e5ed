"""The vocabulary of foretell: values and protocols that every room shares. Imports nothing of foretell."""
