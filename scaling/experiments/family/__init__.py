"""How the shipped emulators are made."""
