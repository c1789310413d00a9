"""Networks, families and checkpoints. Importing this package registers regear's model types with transformers."""

import regear.models.mla  # noqa: F401 - registers regear_mla
