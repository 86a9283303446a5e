"""The sweep behind the law of the shipped emulators."""
