"""From a trained model to a package: reads what frameworks save, converts where that is faster, proves parity."""
