"""From a trained model to a package: reads what frameworks save, converts where that is faster, proves parity.

Importing this loads no framework: `import_model` brings in the importer that the source needs.
"""

from foretell.importers.importing import import_model

__all__ = ["import_model"]
