"""For a reader: figures, the atlas, the demo, the report, the model card, with their templates.

Imports everything else of the library; nothing else imports it.
"""
