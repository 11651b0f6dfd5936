"""The forms in which engines and libraries load a draft: what each can express, and how it is written."""
