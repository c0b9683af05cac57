"""ChatBaker bakes a bilingual (Korean and English) chat model from raw text to a served assistant."""

__version__ = "0.1.0"
